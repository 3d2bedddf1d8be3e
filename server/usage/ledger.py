"""What every accepted request used: one row each, appended and never changed; and which requests are under way.

Owns the ledger's database. It is a file of its own beside the registry's, so that a row a request never queues behind
the registry's writers, and so that it can be archived or removed by itself. Knows no HTTP and no threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects.sqlite import insert

from adapters.database import Database, Schema
from adapters.disk import Disk
from server.usage.tables import UnderWayRow, UsageRow

_SCHEMA = Schema("usage ledger", Path(__file__).parent / "migrations")
_PAGE = 1000
LOST = "lost"


@dataclass(frozen=True, slots=True)
class Usage:
    """One request. `id` is the server's own request id, `adapter` a `name@version`, or "" for the base.

    `started` and `ended` are seconds since 1970. `finish_reason` is the engine's, or `mixed` where several choices of
    one request ended in different ways, or `lost` where the server died before it did.
    """

    id: str
    tenant: str
    project: str
    key: str
    adapter: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    finish_reason: str
    started: float
    ended: float


COLUMNS = tuple(field.name for field in fields(Usage))


@dataclass(frozen=True, slots=True)
class UsageStart:
    """What is known of a request once it has been accepted; `generated_tokens` is what was noted of its answer."""

    id: str
    tenant: str
    project: str
    key: str
    adapter: str
    prompt_tokens: int
    started: float
    generated_tokens: int = 0

    def ended(self, cached_tokens: int, generated_tokens: int, finish_reason: str, ended: float) -> Usage:
        more = {"cached_tokens": cached_tokens, "generated_tokens": generated_tokens}
        return Usage(**asdict(self) | more, finish_reason=finish_reason, ended=ended)


_FORGET = delete(UnderWayRow).where(UnderWayRow.id == bindparam("ended"))


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Rows that ended in [since, until), in seconds since 1970; of one tenant, or with None of all."""

    since: float | None = None
    until: float | None = None
    tenant: str | None = None


class Ledger:
    """Safe to use from many threads, and to read while another process writes."""

    def __init__(self, url: str, disk: Disk | None = None) -> None:
        """Raises DatabaseUnusable when the file is damaged or a newer release wrote it."""
        self._database = Database(url, _SCHEMA, disk)

    def close(self) -> None:
        self._database.close()

    def append(self, ended: Sequence[Usage], begun: Sequence[UsageStart] = ()) -> None:
        """Write in one transaction what has ended, and what has begun and not ended. Raises OSError.

        A request that has its row already keeps that one; one that was begun before is now as it is told.
        """
        with self._database.writing() as session:
            if begun:
                statement = insert(UnderWayRow)
                now = {name: statement.excluded[name] for name in ("prompt_tokens", "generated_tokens")}
                session.execute(statement.on_conflict_do_update(["id"], set_=now), [asdict(each) for each in begun])
            if ended:
                session.execute(insert(UsageRow).on_conflict_do_nothing(), [asdict(row) for row in ended])
                session.connection().execute(_FORGET, [{"ended": row.id} for row in ended])

    def under_way(self) -> list[UsageStart]:
        """What has begun, and has not ended as far as the disk knows."""
        with self._database.reading() as session:
            return [
                UsageStart(*(getattr(row, field.name) for field in fields(UsageStart)))
                for row in session.scalars(select(UnderWayRow).order_by(UnderWayRow.started, UnderWayRow.id))
            ]

    def lost(self, now: float) -> list[Usage]:
        """How that ends once the server it ran on is dead, which is known to whoever holds the data directory's lock:
        to anybody else these may be a running server's.
        """
        return [each.ended(0, each.generated_tokens, LOST, max(each.started, now)) for each in self.under_way()]

    def page(self, wanted: UsageFilter, after: int = 0, limit: int = _PAGE) -> list[tuple[int, Usage]]:
        """The first rows behind place `after`, in the order they were written, each with its own place."""
        query = select(UsageRow).where(UsageRow.place > after).order_by(UsageRow.place).limit(limit)
        if wanted.since is not None:
            query = query.where(UsageRow.ended >= wanted.since)
        if wanted.until is not None:
            query = query.where(UsageRow.ended < wanted.until)
        if wanted.tenant is not None:
            query = query.where(UsageRow.tenant == wanted.tenant)
        with self._database.reading() as session:
            return [(row.place, Usage(*(getattr(row, name) for name in COLUMNS))) for row in session.scalars(query)]

    def rows(self, wanted: UsageFilter) -> Iterator[Usage]:
        """All of them, a page at a time."""
        after = 0
        while page := self.page(wanted, after):
            yield from (row for _, row in page)
            after = page[-1][0]
