"""`rootstock usage`: the ledger of a data directory, as CSV or JSON.

Owns the command. It reads the file itself, whether or not a server runs on it.
"""

import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from server.commands.errors import CommandFailed
from server.commands.options import data_folder, print_json


class Format(StrEnum):
    csv, json = "csv", "json"


Time = typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"], help="A moment in UTC.")


def usage(
    format: Annotated[Format, typer.Option("--format", help="CSV with a header, or a JSON list.")] = Format.csv,
    since: Annotated[datetime | None, Time] = None,
    until: Annotated[datetime | None, Time] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Requests of this tenant only; of all by default.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", envvar="ROOTSTOCK_DATA_DIR", help="The server's data directory.")
    ] = None,
) -> None:
    """Tell what requests used: one row each, in the order they were written."""
    from server.datadir import DataDir
    from server.usage.ledger import Ledger, UsageFilter
    from server.usage.table import as_json, write_csv

    data = DataDir(data_folder(data_dir))
    if not data.usage.exists():
        raise CommandFailed(f"There is no usage ledger in {data.root}. A server writes one with its first start there.")
    ledger = Ledger(data.usage_url)
    try:
        rows = ledger.rows(UsageFilter(_seconds(since), _seconds(until), tenant))
        print_json([as_json(row) for row in rows]) if format is Format.json else write_csv(rows, sys.stdout)
    finally:
        ledger.close()


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.replace(tzinfo=UTC).timestamp()
