"""A hold on a version's bytes, for as long as a request runs on them.

Owns that a hold ends once. What it means for the bytes is the catalog's affair.
"""

import threading
from collections.abc import Callable
from types import TracebackType

from adapters.registry import Version


class Lease:
    """Keeps a version's blob on disk until released, even if its name is deleted. Releasing twice is harmless."""

    def __init__(self, version: Version, release: Callable[[], None]) -> None:
        self.version = version
        self._release: Callable[[], None] | None = release
        self._lock = threading.Lock()

    def release(self) -> None:
        with self._lock:
            release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
