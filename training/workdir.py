"""The folders of a run: all work happens in `.NAME.work` beside the output, which appears by one rename.

Owns the folders, the lock on them, and the rule of when an interrupted run may be resumed. Imports no torch.
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

from training.atomic import write_atomically
from training.config import TrainConfig
from training.errors import ConfigInvalid, OutputInTheWay

CHANGEABLE = ("output", "about", "push", "gate", "score", "track")
"""Config sections that do not affect the weights; they may change before an interrupted run is resumed."""
STARTED = "started.json"
TENSORBOARD = "tensorboard"
"""The folder of TensorBoard's events, in the work folder and in the output."""

ResumePolicy = Literal["ask", "resume", "fresh"]
"""What to do with an interrupted run: refuse and name it, continue it, or discard it."""


@dataclass(frozen=True, slots=True)
class Workdir:
    """The folders of one run. `result` collects what will become the output."""

    output: Path
    path: Path

    @property
    def result(self) -> Path:
        return self.path / "result"

    def publish(self) -> None:
        """Rename `result` to the output and delete the rest of the work folder. Raises OutputInTheWay."""
        if self.output.exists():
            raise OutputInTheWay(f"{self.output} has appeared since the run began. The result lies in {self.result}.")
        _sync(self.result)
        self.result.rename(self.output)
        _sync_folder(self.output.parent)
        shutil.rmtree(self.path)


def check_output(output: Path, policy: ResumePolicy) -> None:
    """Raises OutputInTheWay for an output that exists, and under `ask` for an interrupted run."""
    if output.exists():
        raise OutputInTheWay(f"{output} exists. Give another --output, or remove it.")
    work = work_folder(output)
    if policy == "ask" and (work / STARTED).exists():
        raise OutputInTheWay(
            f"An interrupted run lies in {work}. Give --resume to go on with it, or --fresh to begin again."
        )


@contextmanager
def claim_workdir(config: TrainConfig, contents: Mapping[str, str], policy: ResumePolicy) -> Iterator[Workdir]:
    """Create and lock the run's work folder. `contents` are digests of the files that the config names, by config key.

    Raises OutputInTheWay, also when another process holds the lock; ConfigInvalid when the run to be resumed was
    started with another config or other data.
    """
    check_output(config.output, policy)
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
        _begin(config, work, contents, policy)
        yield work


def work_folder(output: Path) -> Path:
    """Where the run that will make `output` works: a hidden folder beside it."""
    return output.parent / f".{output.name}.work"


def _begin(config: TrainConfig, work: Workdir, contents: Mapping[str, str], policy: ResumePolicy) -> None:
    now = {"config": config.model_dump(mode="json", exclude=set(CHANGEABLE)), "contents": dict(contents)}
    started = work.path / STARTED
    if started.exists() and policy == "resume":
        then = json.loads(started.read_text(encoding="utf-8"))
        changed = sorted(_differences(then, now))
        if changed:
            fix = "Undo the change, or give --fresh to begin again"
            raise ConfigInvalid("A run that was begun otherwise", [f"{fault} {fix}." for fault in changed])
    else:
        _clear(work.path)
        write_atomically(started, json.dumps(now, indent=1))
    # Checkpoints are kept; what is written after training is written again.
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
    """Flush a folder's files to disk before its rename, so that a crash cannot publish half of it."""
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
