"""The layout of the data directory, and the lock that keeps it to one server.

Owns the paths under it. What the files hold is the store's and the registry's affair.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path


class DataDirUnusable(Exception):
    """No server can run on this directory as things are; the message says what to change."""


class DataDirInUse(DataDirUnusable):
    """Another server holds the lock."""


@dataclass(frozen=True, slots=True)
class DataDir:
    """`root` is made on first use; `lock` fails when another server has it."""

    root: Path

    @property
    def blobs(self) -> Path:
        return self.root / "adapters"

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @property
    def usage(self) -> Path:
        return self.root / "usage.sqlite"

    @property
    def usage_url(self) -> str:
        return f"sqlite:///{self.usage.absolute()}"

    @property
    def registry(self) -> Path:
        return (self.root / "registry.sqlite").absolute()

    @property
    def registry_url(self) -> str:
        return f"sqlite:///{self.registry}"

    @property
    def keys(self) -> Path:
        return self.root / "keys.sqlite"

    @property
    def pepper(self) -> Path:
        return self.root / "keys.pepper"

    @property
    def served(self) -> bool:
        """Whether a server has ever used it, or `rootstock doctor` has."""
        return self._lock.exists()

    @property
    def _lock(self) -> Path:
        return self.root / "lock"

    def lock(self) -> int:
        """Hold the directory until the returned descriptor is closed. Raises DataDirUnusable."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError:
            # Mostly a directory of the host, mounted into a container whose user is another one.
            raise DataDirUnusable(
                f"User {os.geteuid()} may not write to {self.root}. Give it to that user, with "
                f"`chown -R {os.geteuid()}:{os.getegid()} DIR`, or name another with --data-dir."
            ) from None
        except OSError as error:
            raise self.unusable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise DataDirInUse(
                f"Another server uses {self.root}. Stop it, or give this one its own --data-dir."
            ) from None
        return descriptor

    def unusable(self, error: OSError) -> DataDirUnusable:
        """What `error`, met while the directory was made, means to whoever named it."""
        return DataDirUnusable(
            f"{self.root} cannot be a data directory ({error.strerror}). Name a directory with --data-dir."
        )

    def clear_uploads(self) -> None:
        """Remove what a killed server left of its forms; resumable uploads go on. Call it under the lock."""
        if self.uploads.is_dir():
            for left in self.uploads.glob("*.part"):
                left.unlink(missing_ok=True)
