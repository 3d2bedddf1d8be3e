"""The world around a server: what lies beside its data, in the working directory and among temporary files (I3).

Owns a folder that all three are in while its block runs, and what lay there before. Knows no server.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path


class Surroundings:
    """Everything under `root` but what is under one of `inside`, as it is when this is made."""

    def __init__(self, root: Path, *inside: Path) -> None:
        self._root, self._inside = root, inside
        self._before = self._look()

    def check(self) -> None:
        """Nothing came, went, or has other bytes."""
        now = self._look()
        changed = sorted(path for path in now.keys() | self._before.keys() if now.get(path) != self._before.get(path))
        assert not changed, f"I3: {changed}"

    def _look(self) -> Mapping[str, tuple[int, int] | None]:
        """Each path, and of what is no directory its size and when it was written to."""
        seen: dict[str, tuple[int, int] | None] = {}
        for folder, folders, files in os.walk(self._root):
            folders[:] = [name for name in folders if Path(folder, name) not in self._inside]
            seen |= {os.path.join(folder, name): None for name in folders}
            for name in files:
                status = os.lstat(os.path.join(folder, name))
                seen[os.path.join(folder, name)] = status.st_size, status.st_mtime_ns
        return seen


@contextlib.contextmanager
def at_home(root: Path) -> Iterator[None]:
    """The process works in `root`/work, and makes temporary files there, so that a path that is taken as it came leads
    to where `Surroundings` looks, two steps up too."""
    work = root / "beside" / "work"
    work.mkdir(parents=True)
    before, tempfile.tempdir = tempfile.tempdir, str(work)
    try:
        with contextlib.chdir(work):
            yield
    finally:
        tempfile.tempdir = before


def targets(path: str, server: Path) -> Iterator[str]:
    """Where `path` would lead: from the working directory, and from each place where a server writes."""
    name = path.partition("\0")[0]  # where C ends it
    places = ("", "data", "data/blobs", "data/blobs/tmp", "uploads", "uploads/resumable", "uploads/resumable/x")
    for start in (Path.cwd(), *(server / place for place in places)):
        yield os.path.normpath(start / name)
