"""The disk as the store and the registry change it: one seam, at which every failure and every crash can be put.

Owns the calls that change what survives a power cut, and nothing else. Reading is not among them.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


class Disk:
    """The real one. Each call raises OSError as the system tells it, `commit` as the database does."""

    def create(self, path: Path) -> BinaryIO:
        """A new file, open for writing."""
        return path.open("xb")

    def write(self, file: BinaryIO, content: bytes) -> None:
        file.write(content)

    def sync(self, descriptor: int) -> None:
        """Make a file's content, or the renames inside a directory, durable."""
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def remove(self, tree: Path) -> None:
        """Remove a directory and what is in it."""
        shutil.rmtree(tree)

    def commit(self, transaction: Callable[[], None]) -> None:
        """Make a database's transaction durable."""
        transaction()
