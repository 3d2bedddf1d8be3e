"""What the registry knows of one name and the blobs' labels do not say: rows, as they are written beside the blobs.

Owns which tables are kept, and the encoding: versioned, with a checksum. Knows neither files nor when they are written;
what of a dossier may be believed is decided in `restoring.py`.
"""

import hashlib
import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, inspect, select
from sqlalchemy.orm import Session

from adapters.tables import AliasMoveRow, AliasRow, CanaryRow, EvalFileRow, NameRow, ScoreRow, ShareRow, Table
from adapters.tables import VersionRow as Numbered

FORMAT = 1
KEPT: tuple[type[Table], ...] = (NameRow, ShareRow, CanaryRow, AliasMoveRow, EvalFileRow, ScoreRow)
"""Each has a column `name`. A row's own number, where it has one, is not kept; their order is."""

Rows = list[dict[str, Any]]


class DossierUnreadable(Exception):
    """Its message says why."""


@dataclass(frozen=True, slots=True)
class Dossier:
    """`kept` are the rows of each table in KEPT, in words that JSON has.

    `versions` gives the numbers their adapters' ids, `aliases` the aliases their numbers, so that whoever reads it
    later can tell whether it speaks of the same things.
    """

    name: str
    kept: Mapping[str, Rows]
    versions: Mapping[str, str]
    aliases: Mapping[str, int]


def read(session: Session, name: str | None = None) -> dict[str, Dossier]:
    """Of every name that was ever used, or of one."""
    versions, aliases = _all(session, Numbered, name), _all(session, AliasRow, name)
    kept = {table: _all(session, table, name) for table in KEPT}
    return {
        each: Dossier(
            each,
            {table.__tablename__: [_spelled(row) for row in kept[table].get(each, ())] for table in KEPT},
            {str(row.number): row.adapter_id for row in versions.get(each, ())},
            {row.alias: row.number for row in aliases.get(each, ())},
        )
        for each in kept[NameRow]
    }


def encode(dossier: Dossier) -> bytes:
    body = json.dumps(asdict(dossier), sort_keys=True)
    return json.dumps({"format": FORMAT, "sha256": _sha256(body), "dossier": body}).encode()


def decode(content: bytes) -> Dossier:
    """Raises DossierUnreadable."""
    try:
        envelope = json.loads(content)
        format, body, sha256 = int(envelope["format"]), str(envelope["dossier"]), envelope["sha256"]
        if format > FORMAT:
            raise DossierUnreadable("a newer release wrote it")
        if sha256 != _sha256(body):
            raise DossierUnreadable("it is damaged")
        return Dossier(**json.loads(body))
    except (ValueError, KeyError, TypeError) as error:
        raise DossierUnreadable("it is damaged") from error


def row(table: type[Table], spelled: Mapping[str, Any]) -> Table:
    """A row to add to a session."""
    columns = {column.key: column for column in _columns(table)}
    return table(**{key: _unspell(columns[key], value) for key, value in spelled.items()})


def _all(session: Session, table: Any, name: str | None) -> dict[str, list[Any]]:
    """Rows by name, in the order of their keys."""
    query = select(table).order_by(*inspect(table).primary_key)
    found: dict[str, list[Any]] = {}
    for each in session.scalars(query if name is None else query.where(table.name == name)):
        found.setdefault(each.name, []).append(each)
    return found


def _columns(table: type[Table]) -> list[Column[Any]]:
    return [column for column in inspect(table).columns if column.key != "id"]


def _spelled(row: Table) -> dict[str, Any]:
    return {column.key: _spell(getattr(row, column.key)) for column in _columns(type(row))}


def _spell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return b64encode(zlib.compress(value)).decode() if isinstance(value, bytes) else value


def _unspell(column: Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if column.type.python_type is datetime:
        return datetime.fromisoformat(value)
    return zlib.decompress(b64decode(value)) if column.type.python_type is bytes else value


def _sha256(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
