"""The disk as everything that keeps something changes it: one seam, at which every failure and crash can be put.

Blobs, the registry, uploads, keys and the usage ledger go through it. Owns the calls that change what survives a power
cut, and nothing else. Reading is not among them.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


class Disk:
    """The real one. Each call raises OSError as the system does, `commit` as the database does."""

    def mkdir(self, path: Path) -> None:
        """A directory; one that is there already is fine."""
        path.mkdir(exist_ok=True)

    def create(self, path: Path, mode: int = 0o666) -> BinaryIO:
        """A new file, open for writing. Raises FileExistsError."""
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb")

    def append(self, path: Path) -> BinaryIO:
        """A file that is there, open for writing at its end."""
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), "ab")

    def write(self, file: BinaryIO, content: bytes) -> None:
        """Hand all of `content` to the system."""
        file.write(content)
        file.flush()

    def sync(self, descriptor: int) -> None:
        """Make a file's content, or the renames inside a directory, durable."""
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file; none is fine."""
        path.unlink(missing_ok=True)

    def remove(self, tree: Path) -> None:
        """Remove a directory and what is in it."""
        shutil.rmtree(tree)

    def commit(self, transaction: Callable[[], None]) -> None:
        """Make a database's transaction durable."""
        transaction()

    # Made of the calls above

    def put(self, path: Path, content: bytes, mode: int = 0o666) -> None:
        """A new file whose content is durable; its name is when the directory is synced."""
        with self.create(path, mode) as file:
            self.write(file, content)
            self.sync(file.fileno())

    def replace(self, path: Path, content: bytes, aside: Path, mode: int = 0o666) -> None:
        """Give `path` this content in one step, durably. `aside` is written first, and is gone at the end."""
        try:
            self.put(aside, content, mode)
            self.rename(aside, path)
            self.sync_directory(path.parent)
        finally:
            aside.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)
