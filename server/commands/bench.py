"""`rootstock bench`: runs the bench, which imports nothing of the server.

Owns the hand-over. Knows where the bench lies, and imports nothing of it: it measures this server as it measures
others, so it runs as a program of its own.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from server.commands.errors import CommandFailed

ROOT = Path(__file__).parents[2]
ANYTHING = {"ignore_unknown_options": True, "help_option_names": []}
"""Flags are the bench's to understand, --help among them."""


def bench(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND …", help="See rootstock bench --help.")
    ] = None,
) -> None:
    """Measure: servers, peers, commits. The same as `python -m bench` in the repository."""
    if not (ROOT / "bench" / "__main__.py").exists():
        raise CommandFailed(
            "The bench is not installed with the server. Run this command in a clone of the repository, after "
            "`make setup`."
        )
    # -P: a folder called bench in the working directory is not the one that is meant
    os.execv(sys.executable, [sys.executable, "-P", "-m", "bench", *(arguments or ["--help"])])
