"""What references meant since the catalog last changed.

Owns that memory only. What a reference means is asked of the registry.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapters.canary import Split
from adapters.version import Version


class Resolved:
    """What references meant since the last change: every request resolves one, and a query takes milliseconds.

    One process owns a data directory, so nobody changes the registry behind this cache's back.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._changes = 0
        self._known: dict[str, Split[Version]] = {}

    def get(self, ref: str, ask: Callable[[], Split[Version]]) -> Split[Version]:
        known, before = self._known.get(ref), self._changes
        if known is not None:
            return known
        split = ask()
        with self._lock:
            if self._changes == before and len(self._known) < self._most:
                self._known[ref] = split  # unless it was asked before a change and answered after it
        return split

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around a write: whatever was resolved before it, or during it, is asked for again."""
        try:
            yield
        finally:
            with self._lock:
                self._changes += 1
                self._known.clear()
