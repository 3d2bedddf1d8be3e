"""A disk that fails or kills at one chosen moment, for whoever takes an `adapters.disk.Disk`."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

from adapters.disk import Disk

Moment = Literal["before", "halfway", "after"]
HALVES = frozenset({"write", "remove"})
"""The calls that can be left half done; all others happen or do not."""


class FaultyDisk(Disk):
    """Its `at`-th call, counted from 0, meets `happen`: before it, halfway through it, or after it.

    A lasting fault is met by all later calls too.
    """

    def __init__(
        self, happen: Callable[[], None], at: int | None = None, moment: Moment = "before", lasting: bool = False
    ) -> None:
        self.calls: list[str] = []
        self.happen, self._at, self._moment, self._lasting = happen, at, moment, lasting

    def arm(self, at: int | None) -> None:
        """Count from here; with None, nothing happens any more."""
        self.calls.clear()
        self._at = at

    def end(self, at: int, moment: Moment) -> None:
        """Count from here; the `at`-th call is met at `moment`, and each after it before it is made."""
        self.arm(at)
        self._moment, self._lasting = moment, True

    def mkdir(self, path: Path) -> None:
        self._call("mkdir", lambda: super(FaultyDisk, self).mkdir(path))

    def create(self, path: Path, mode: int = 0o666) -> BinaryIO:
        return self._opened("create", lambda: super(FaultyDisk, self).create(path, mode))

    def append(self, path: Path) -> BinaryIO:
        return self._opened("append", lambda: super(FaultyDisk, self).append(path))

    def write(self, file: BinaryIO, content: bytes) -> None:
        self._call("write", lambda: super(FaultyDisk, self).write(file, content), lambda: _write_half(file, content))

    def sync(self, descriptor: int) -> None:
        self._call("sync", lambda: super(FaultyDisk, self).sync(descriptor))

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename", lambda: super(FaultyDisk, self).rename(source, target))

    def unlink(self, path: Path) -> None:
        self._call("unlink", lambda: super(FaultyDisk, self).unlink(path))

    def remove(self, tree: Path) -> None:
        self._call("remove", lambda: super(FaultyDisk, self).remove(tree), lambda: _remove_half(tree))

    def commit(self, transaction: Callable[[], None]) -> None:
        self._call("commit", transaction)

    def _opened(self, name: str, open: Callable[[], BinaryIO]) -> BinaryIO:
        files: list[BinaryIO] = []
        try:
            self._call(name, lambda: files.append(open()))
        except BaseException:
            for file in files:
                file.close()  # nobody else has it
            raise
        return files[0]

    def _call(self, name: str, call: Callable[[], None], half: Callable[[], None] | None = None) -> None:
        number = len(self.calls)
        chosen = number == self._at or (self._lasting and self._at is not None and number > self._at)
        self.calls.append(name)
        moment = self._moment if number == self._at else "before"
        if chosen and moment != "after":
            if moment == "halfway":
                assert half is not None, f"{name} has no half"
                half()
            self.happen()
        call()
        if chosen and moment == "after":
            self.happen()


def die() -> None:
    """As the kernel kills: no handler runs, no buffer is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> Callable[[], None]:
    """What happens at a fault that the system reports: OSError with this errno."""

    def happen() -> None:
        raise OSError(number, os.strerror(number))

    return happen


def _write_half(file: BinaryIO, content: bytes) -> None:
    file.write(content[: len(content) // 2])
    file.flush()


def _remove_half(tree: Path) -> None:
    for path in sorted(tree.iterdir())[:1]:
        path.unlink() if path.is_file() else shutil.rmtree(path)
