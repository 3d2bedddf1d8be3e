"""What commands draw while they load: a bar on a terminal, plain lines elsewhere.

Owns the picture of the loader's progress. Knows rich; decides nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

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
