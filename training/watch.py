"""What a run tells while it goes on: its stages, its notes, and each step's figures, live or in plain lines.

Owns the drawing and metrics.jsonl. Imports no torch; training/trainers/recorder.py feeds it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from loader.memory import format_bytes

PLAIN_LINES = 20
"""Without a terminal, a run of any length prints about so many lines of steps."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of `total`: its loss (or reward), tokens per second since the start, and bytes at the peak."""

    step: int
    total: int
    figures: Mapping[str, float]
    tokens_per_second: float
    memory_bytes: int


class Watch(Protocol):
    """Whoever looks on. Nothing it does may change the run."""

    def stage(self, text: str) -> None:
        """A part of the run begins."""

    def note(self, text: str) -> None:
        """Something that the user should know and need not act on."""

    def step(self, step: Step) -> None:
        """An optimizer step is done."""

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """The held-out split was looked at after `step`."""


class Silent:
    """A watch that shows nothing."""

    def stage(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def step(self, step: Step) -> None:
        pass

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        pass


class Terminal:
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
            self.note(f"step {step.step}/{step.total}  {told(step)}")
        if step.step >= step.total:
            self._stop()

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        told_figures = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.note(f"step {step}  held-out: {told_figures}")

    def _draw(self, step: Step) -> None:
        if self._live is None or self._task is None:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._live = Progress(*columns, console=self._console)
            self._live.start()
            self._task = self._live.add_task("", total=step.total, completed=step.step - 1)
        self._live.update(self._task, completed=step.step, description=told(step))

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live, self._task = None, None


def told(step: Step) -> str:
    """A step's figures in one line."""
    parts = [f"{name} {value:.4g}" for name, value in step.figures.items()]
    return "  ".join([*parts, f"{step.tokens_per_second:.0f} tokens/s", format_bytes(step.memory_bytes)])


class Metrics:
    """metrics.jsonl: one object a line, flushed at once. A resumed run forgets what came after its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def rewind(self, step: int) -> None:
        """Keep what was recorded up to `step`; a last line that a kill cut off goes too."""
        kept = [record for record in self.records() if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        scratch = self.path.with_suffix(".new")
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(self.path)

    def records(self) -> Iterator[dict[str, float]]:
        """The whole lines of the file, if there is one."""
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)
