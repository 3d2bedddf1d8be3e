"""Where aliases point, where they pointed before, and which canaries get a part of their traffic: rows in a session.

Owns those three tables and the one rule of going back. Knows neither manifests nor when a session commits; whether a
version exists is the registry's to say.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from adapters.canary import Canary
from adapters.database import FEW
from adapters.errors import CanaryInvalid, NothingToRollBack, UnknownAdapter, quoted
from adapters.tables import AliasMoveRow, AliasRow, CanaryRow

HISTORY = 100
"""So many moves of an alias are remembered, the latest."""


@dataclass(frozen=True, slots=True)
class Move:
    """`from_number` is None where there was no alias before, `to_number` where there was none after. Times in UTC.

    `undone` is when a rollback took the move back.
    """

    moved: datetime
    from_number: int | None
    to_number: int | None
    undone: datetime | None


@dataclass(frozen=True, slots=True)
class Alias:
    """`moves` are newest first."""

    name: str
    alias: str
    number: int
    canary: Canary | None
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Pointers:
    """What points at one version: `aliases`, sorted, and `canaries` as (alias, weight)."""

    aliases: tuple[str, ...] = ()
    canaries: tuple[tuple[str, float], ...] = ()


def point(session: Session, name: str, alias: str, number: int | None, canary: Canary | None = None) -> None:
    """Move `alias` to `number`, or remove it for None, and note where it was. `canary` takes the place of any other.

    Raises CanaryInvalid when the canary is `number` itself.
    """
    if canary is not None and canary.number == number:
        raise CanaryInvalid(f"Version {number} is what the alias points at already. Try another version as its canary.")
    before = target(session, name, alias)
    if before != number:
        moved = _now()
        session.add(AliasMoveRow(name=name, alias=alias, moved=moved, from_number=before, to_number=number))
        _set(session, name, alias, number)
        for forgotten in session.scalars(_moves(name, alias).offset(HISTORY)):
            session.delete(forgotten)
    if number is not None:
        _set_canary(session, name, alias, canary)


def roll_back(session: Session, name: str, alias: str) -> int:
    """End the alias's canary or, where it has none, take its latest move back. The number it points at then.

    A second call goes one move further back. Raises NothingToRollBack.
    """
    number = target(session, name, alias)
    if number is not None and session.get(CanaryRow, (name, alias)) is not None:
        _set_canary(session, name, alias, None)
        return number
    query = _moves(name, alias).where(AliasMoveRow.undone.is_(None)).limit(1)
    last = session.scalars(query).one_or_none()
    if last is None or last.from_number is None:
        raise NothingToRollBack(f"The alias {quoted(alias)} has not pointed at another version, so it stays.")
    last.undone = _now()
    _set(session, name, alias, last.from_number)
    return last.from_number


def forget(session: Session, name: str, number: int) -> None:
    """Version `number` is about to go: aliases that went by way of it have gone straight to what came after it."""
    before: dict[str, int | None] = {}
    for move in session.scalars(select(AliasMoveRow).where(AliasMoveRow.name == name).order_by(AliasMoveRow.id)).all():
        if move.from_number == number:
            move.from_number = before.get(move.alias)
        if move.to_number == number and move.undone is None:
            before[move.alias] = move.from_number
        if move.to_number == number or move.from_number == move.to_number:
            session.delete(move)
    session.flush()


def read(session: Session, name: str, alias: str) -> Alias:
    """Raises UnknownAdapter when `name` has no such alias."""
    number = target(session, name, alias)
    if number is None:
        raise unknown_alias(name, alias)
    moves = tuple(_move(row) for row in session.scalars(_moves(name, alias)))
    return Alias(name, alias, number, canary_of(session, name, alias), moves)


def target(session: Session, name: str, alias: str) -> int | None:
    """The version that the alias points at, if there is one."""
    row = session.get(AliasRow, (name, alias))
    return None if row is None else row.number


def canary_of(session: Session, name: str, alias: str) -> Canary | None:
    row = session.get(CanaryRow, (name, alias))
    return None if row is None else Canary(row.number, row.weight)


def pointers(session: Session, names: Set[str]) -> Mapping[tuple[str, int], Pointers]:
    """By name and number; what nothing points at is left out."""
    aliases, canaries = select(AliasRow).order_by(AliasRow.alias), select(CanaryRow).order_by(CanaryRow.alias)
    if len(names) <= FEW:
        aliases, canaries = aliases.where(AliasRow.name.in_(names)), canaries.where(CanaryRow.name.in_(names))
    found: dict[tuple[str, int], Pointers] = {}
    for alias in session.scalars(aliases):
        known = found.get((alias.name, alias.number), Pointers())
        found[alias.name, alias.number] = Pointers((*known.aliases, alias.alias), known.canaries)
    for canary in session.scalars(canaries):
        known = found.get((canary.name, canary.number), Pointers())
        canaried = (*known.canaries, (canary.alias, canary.weight))
        found[canary.name, canary.number] = Pointers(known.aliases, canaried)
    return found


def unknown_alias(name: str, alias: str) -> UnknownAdapter:
    return UnknownAdapter(f"There is no alias {quoted(alias)} of an adapter {quoted(name)}.")


def _set(session: Session, name: str, alias: str, number: int | None) -> None:
    row = session.get(AliasRow, (name, alias))
    if number is not None:
        session.merge(AliasRow(name=name, alias=alias, number=number))
    elif row is not None:
        session.delete(row)
    session.flush()


def _set_canary(session: Session, name: str, alias: str, canary: Canary | None) -> None:
    row = session.get(CanaryRow, (name, alias))
    if canary is not None:
        session.merge(CanaryRow(name=name, alias=alias, number=canary.number, weight=canary.weight))
    elif row is not None:
        session.delete(row)
    session.flush()


def _moves(name: str, alias: str) -> Select[AliasMoveRow]:
    return (
        select(AliasMoveRow)
        .where(AliasMoveRow.name == name, AliasMoveRow.alias == alias)
        .order_by(AliasMoveRow.id.desc())
    )


def _move(row: AliasMoveRow) -> Move:
    undone = None if row.undone is None else row.undone.replace(tzinfo=UTC)
    return Move(row.moved.replace(tzinfo=UTC), row.from_number, row.to_number, undone)


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
