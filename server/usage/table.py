"""How usage is shown: a row as JSON, and rows as CSV (RFC 4180).

Owns the spelling of times, which are ISO 8601 in UTC. Knows neither the ledger's file nor HTTP.
"""

import csv
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO

from server.usage.ledger import COLUMNS, Usage


def as_json(row: Usage) -> dict[str, Any]:
    shown = {name: getattr(row, name) for name in COLUMNS}
    return shown | {"started": _spelled(row.started), "ended": _spelled(row.ended)}


def write_csv(rows: Iterable[Usage], out: TextIO) -> None:
    """A header and a line a row. No field can begin a formula: ids, keys and slugs are all there is in them."""
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(as_json, rows))


def read_time(text: str) -> float:
    """Seconds since 1970 for `2026-11-25` or `2026-11-25T18:00:00Z`; without a zone it is UTC. Raises ValueError."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _spelled(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
