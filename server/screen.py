"""What `rootstock serve` draws while it starts: progress, the memory table, where it listens.

Owns the terminal output of the start. Knows rich; decides nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from loader.progress import Progress as Watcher


@contextmanager
def loading(console: Console) -> Iterator[Watcher]:
    """A watcher for the loader: a bar on a terminal, a line a phase elsewhere."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def watch(what: str, done: float | None) -> None:
            progress.update(task, description=what, total=None if done is None else 1.0, completed=done or 0.0)

        yield watch


class _Lines:
    """Says each phase once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""

    def __call__(self, what: str, done: float | None) -> None:
        if what != self._said:
            self._said = what
            self._console.print(what, highlight=False)


def memory_table(console: Console, rows: Iterable[tuple[str, str, str]]) -> None:
    """What takes how much: (who, bytes as text, why)."""
    table = Table(title="Memory", title_justify="left")
    table.add_column("for")
    table.add_column("size", justify="right")
    table.add_column("that is")
    for row in rows:
        table.add_row(*row)
    console.print(table)
