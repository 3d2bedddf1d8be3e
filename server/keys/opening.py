"""Opening a data directory's keys, for a server and for the command line alike.

Owns the files' first moments: both are made readable by their owner alone, and a pepper is never made a second time.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from adapters.disk import Disk
from server.datadir import DataDir
from server.keys.pepper import make_pepper, read_pepper
from server.keys.store import KeyStore


def open_keys(data: DataDir, pepper_file: Path | None = None, by: str = "", disk: Disk | None = None) -> KeyStore:
    """Raises DataDirUnusable, PepperUnusable, and DatabaseUnusable for a damaged database. Close it when done."""
    if not data.keys.exists():
        try:
            data.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise data.unusable(error) from error
        with _alone(data.root):
            _make(data, own_pepper=pepper_file is None, disk=disk or Disk())
    pepper = read_pepper(data.pepper if pepper_file is None else pepper_file)
    return KeyStore(f"sqlite:///{data.keys.absolute()}", pepper, by, disk)


def _make(data: DataDir, own_pepper: bool, disk: Disk) -> None:
    """The pepper first: keys without one would be worth nothing."""
    if own_pepper and not data.pepper.exists():
        make_pepper(data.pepper, disk)
    if not data.keys.exists():
        disk.create(data.keys, mode=0o600).close()


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time; the directory itself is the lock, so that no file of it stays."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
