"""How a run reports its progress while it goes on: stages, notes, and the figures of each step.

Owns the protocol, and its display as a live line in a terminal or as plain lines. Imports no torch;
training/trainers/recorder.py reports the steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from loader.memory import format_bytes

PLAIN_LINES = 20
"""About how many lines of steps a run prints where there is no terminal, whatever its length."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of `total`: its figures by name, tokens per second since the start, peak memory in bytes."""

    step: int
    total: int
    figures: Mapping[str, float]
    tokens_per_second: float
    memory_bytes: int


class Observer(Protocol):
    """Receives a run's progress. Nothing it does may change the run."""

    def stage(self, text: str) -> None:
        """A part of the run begins, such as loading or training."""

    def note(self, text: str) -> None:
        """Something that the user should know and need not act on."""

    def step(self, step: Step) -> None:
        """An optimizer step is done."""

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """The held-out split was evaluated after `step`."""


class SilentObserver:
    """Shows nothing."""

    def stage(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def step(self, step: Step) -> None:
        pass

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        pass


class TerminalObserver:
    """Draws a live line in a terminal, and plain lines elsewhere. Use it in a `with`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def stage(self, text: str) -> None:
        self._stop()
        self._console.print(text, style="bold", highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, step: Step) -> None:
        if self._console.is_terminal:
            self._draw(step)
        elif step.step in (1, step.total) or step.step % max(1, step.total // PLAIN_LINES) == 0:
            self.note(f"step {step.step}/{step.total}  {format_step(step)}")
        if step.step >= step.total:
            self._stop()

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.note(f"step {step}  held-out: {shown}")

    def _draw(self, step: Step) -> None:
        if self._live is None or self._task is None:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._live = Progress(*columns, console=self._console)
            self._live.start()
            self._task = self._live.add_task("", total=step.total, completed=step.step - 1)
        self._live.update(self._task, completed=step.step, description=format_step(step))

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live, self._task = None, None


def format_step(step: Step) -> str:
    """A step's figures in one line."""
    parts = [f"{name} {value:.4g}" for name, value in step.figures.items()]
    return "  ".join([*parts, f"{step.tokens_per_second:.0f} tokens/s", format_bytes(step.memory_bytes)])
