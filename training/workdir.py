"""Where a run's files lie: all work in `.NAME.work` beside the output, which appears by one rename.

Owns the folders, the claim on them, and the rule of when an interrupted run may be taken up again. Imports no torch.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.config import TrainConfig
from training.errors import ConfigInvalid, OutputInTheWay

AFTERWARDS = ("output", "about", "push", "gate", "score", "track")
"""Sections that decide nothing about the weights; they may change while a run is interrupted."""
STARTED = "started.json"

Again = Literal["ask", "resume", "fresh"]
"""What to do with an interrupted run: say that it is there, take it up, or throw it away."""


@dataclass(frozen=True, slots=True)
class Workdir:
    """The folders of one run. What is to become the output is gathered in `result`."""

    output: Path
    path: Path

    @property
    def result(self) -> Path:
        return self.path / "result"

    def publish(self) -> None:
        """Let the output appear, whole, and drop the rest of the work. Raises OutputInTheWay."""
        if self.output.exists():
            raise OutputInTheWay(f"{self.output} has appeared since the run began. The result lies in {self.result}.")
        _sync(self.result)
        self.result.rename(self.output)
        _sync_folder(self.output.parent)
        shutil.rmtree(self.path)


def check_output(output: Path, again: Again) -> None:
    """Refuse an output that is there, and an interrupted run that nobody decided about. Raises OutputInTheWay."""
    if output.exists():
        raise OutputInTheWay(f"{output} exists. Give another --output, or remove it.")
    work = work_folder(output)
    if again == "ask" and (work / STARTED).exists():
        raise OutputInTheWay(
            f"An interrupted run lies in {work}. Give --resume to go on with it, or --fresh to begin again."
        )


@contextmanager
def claimed(config: TrainConfig, contents: Mapping[str, str], again: Again) -> Iterator[Workdir]:
    """The run's folders, for this process alone. `contents` are digests of what the config points at, by key.

    Raises OutputInTheWay, and ConfigInvalid when a run is to be resumed with another config or other data.
    """
    check_output(config.output, again)
    work = Workdir(config.output, work_folder(config.output))
    try:
        work.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = f"output: {config.output} cannot be written: {error.strerror}. Choose another folder with --output."
        raise ConfigInvalid("The config", [fault]) from None
    with (work.path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputInTheWay(f"Another process is training {config.output}. Wait for it, or end it.") from None
        _begin(config, work, contents, again)
        yield work


def work_folder(output: Path) -> Path:
    return output.parent / f".{output.name}.work"


def _begin(config: TrainConfig, work: Workdir, contents: Mapping[str, str], again: Again) -> None:
    now = {"config": config.model_dump(mode="json", exclude=set(AFTERWARDS)), "contents": dict(contents)}
    started = work.path / STARTED
    if started.exists() and again == "resume":
        then = json.loads(started.read_text(encoding="utf-8"))
        changed = sorted(_differences(then, now))
        if changed:
            fix = "Undo the change, or give --fresh to begin again"
            raise ConfigInvalid("A run that was begun otherwise", [f"{fault} {fix}." for fault in changed])
    else:
        _clear(work.path)
        scratch = started.with_suffix(".new")
        scratch.write_text(json.dumps(now, indent=1), encoding="utf-8")
        scratch.replace(started)
    # What the steps left is kept, what came after them is made again.
    shutil.rmtree(work.result, ignore_errors=True)
    work.result.mkdir()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key, (old, new) in _pairs(then["config"], now["config"]):
        if old != new:
            yield f"{key}: it was {old}, and is {new}."
    for key in sorted({*then["contents"], *now["contents"]}):
        if then["contents"].get(key) != now["contents"].get(key):
            yield f"{key}: its contents have changed."


def _pairs(then: Any, now: Any, prefix: Sequence[str] = ()) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The values of two nested mappings, by dotted key."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in [*then, *(key for key in now if key not in then)]:
            yield from _pairs(then.get(key), now.get(key), (*prefix, key))
    else:
        yield ".".join(prefix), (then, now)


def _sync(folder: Path) -> None:
    """Bring all of a folder to the disk: after the rename there must be no half of it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
