"""The console for results: a terminal, or a file with lines wide enough for a table.

Owns that choice.
"""

from rich.console import Console

WIDE = 180


def terminal() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)
