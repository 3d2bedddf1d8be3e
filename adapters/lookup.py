"""What a reference means, found in one question: its version, what points at it, and its score.

Owns that question. A request that names an adapter for the first time waits for the answer, so there are no objects
for the rows, and nothing is asked twice. Knows a session and the tables; what the answer means is the registry's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, FromClause, Row, Select, and_, bindparam, func, select
from sqlalchemy.orm import Session

from adapters.naming import Reference
from adapters.tables import AliasRow, CanaryRow, ScoreRow, VersionRow

_VERSIONS, _ALIASES = VersionRow.__table__, AliasRow.__table__
_CANARIES, _SCORES = CanaryRow.__table__, ScoreRow.__table__


def look_up(session: Session, reference: Reference) -> Sequence[Row[Any]]:
    """The version, once for each pair of an alias and a canary that point at it; nothing where there is none.

    Rows have the columns of `versions`, and `alias`, `canary`, `weight` and `score_…`, each None where there is none.
    """
    given = {"number": reference.number, "id": reference.id, "alias": reference.alias}
    selector = next((name for name, value in given.items() if value is not None), "")
    values = {"name": reference.name, "selector": given.get(selector)}
    return session.connection().execute(_QUESTIONS[selector], values).all()


def _question(number: ColumnElement[int]) -> Select[Any]:
    """About the version of `:name` that has this `number`."""
    joined: FromClause = _VERSIONS
    for table in (_ALIASES, _CANARIES, _SCORES):
        joined = joined.outerjoin(table, and_(table.c.name == _VERSIONS.c.name, table.c.number == _VERSIONS.c.number))
    score = [column.label(f"score_{column.name}") for column in _SCORES.c if not column.primary_key]
    pointers = (_ALIASES.c.alias, _CANARIES.c.alias.label("canary"), _CANARIES.c.weight)
    found = select(_VERSIONS, *pointers, *score).select_from(joined)
    return found.where(_VERSIONS.c.name == bindparam("name"), _VERSIONS.c.number == number).order_by("alias", "canary")


def _questions() -> Mapping[str, Select[Any]]:
    """By what selects among a name's versions; "" for the newest."""
    other = _VERSIONS.alias()
    selector: BindParameter[Any] = bindparam("selector")
    own = select(func.max(other.c.number)).where(other.c.name == bindparam("name"))
    target = select(_ALIASES.c.number).where(_ALIASES.c.name == bindparam("name"), _ALIASES.c.alias == selector)
    return {
        "": _question(own.scalar_subquery()),
        "number": _question(bindparam("selector", type_=_VERSIONS.c.number.type)),
        "id": _question(own.where(other.c.adapter_id == selector).scalar_subquery()),
        "alias": _question(target.scalar_subquery()),
    }


_QUESTIONS = _questions()
