"""`rootstock bench show FILE…`: the table and the pictures of runs that were measured before.

Owns the command.
"""

from pathlib import Path
from typing import Annotated

import typer

from bench.session import show
from bench.terminal import terminal


def main(
    journal: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…",
            exists=True,
            dir_okay=False,
            help="Journals (*.jsonl) of `bench run`, `compare`, `peers` or `regress`, shown as one run.",
        ),
    ],
) -> None:
    """Print the table of earlier runs again, and draw their pictures."""
    show(terminal(), journal)
