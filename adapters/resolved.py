"""What references meant since their names last changed.

Owns that memory only. What a reference means is asked of the registry.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from adapters.canary import Split
from adapters.version import Version


class Resolved:
    """What references meant since the last change to their name: every request resolves one, and a query takes long.

    One process owns a data directory, so nobody changes the registry behind this cache's back.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._changes = 0
        self._known: dict[str, dict[str, Split[Version]]] = {}  # by name, then by reference
        self._count = 0

    def get(self, ref: str, ask: Callable[[], Split[Version]]) -> Split[Version]:
        name = ref.partition("@")[0]
        known, before = self._known.get(name, {}).get(ref), self._changes
        if known is not None:
            return known
        split = ask()
        with self._lock:
            if self._changes == before:  # else it was asked before a change and answered after it
                self._remember(name, ref, split)
        return split

    def know(self, newest: Iterable[Version]) -> None:
        """What names mean by themselves, as the registry has just said; while nothing changes."""
        with self._lock:
            for version in newest:
                self._remember(version.name, version.name, Split(version))

    @contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Around a write: what was resolved of `name` before it, or during it, is asked for again."""
        try:
            yield
        finally:
            with self._lock:
                self._changes += 1
                self._count -= len(self._known.pop(name, {}))

    def _remember(self, name: str, ref: str, split: Split[Version]) -> None:
        if self._count < self._most:
            own = self._known.setdefault(name, {})
            self._count += ref not in own
            own[ref] = split
