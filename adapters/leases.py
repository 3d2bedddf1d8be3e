"""Holds on versions and their bytes: a blob that is to go stays on disk until the last of them has ended.

Owns the counts, and the removal of a blob that neither a name nor a hold needs any more. What a name means, and when it
goes, is the catalog's to say.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

from adapters.errors import Unsettled
from adapters.manifest import AdapterId
from adapters.registry import Registry
from adapters.store import BlobStore
from adapters.version import Version

log = logging.getLogger(__name__)


class Lease:
    """Keeps a version's blob on disk until released, even if its name is deleted. Releasing is idempotent."""

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


class Leases:
    """Safe to use from many threads. `on_forgotten` is called, on whichever thread, after a blob was removed."""

    def __init__(self, registry: Registry, store: BlobStore, on_forgotten: Callable[[AdapterId], None]) -> None:
        self._registry, self._store, self._on_forgotten = registry, store, on_forgotten
        self._lock = threading.Lock()
        self._uses: dict[AdapterId, int] = {}
        self._leased: Counter[tuple[str, int]] = Counter()  # by name and number
        self._doomed: set[AdapterId] = set()

    @property
    def idle(self) -> bool:
        """Whether nobody holds anything, and no blob waits to be removed."""
        return not (self._uses or self._leased or self._doomed)

    def lease(self, resolve: Callable[[], Version]) -> Lease:
        """Resolve and hold in one step: what is deleted in between is either not found or held."""
        with self._lock:
            version = resolve()
            self._hold(version.id)
            self._leased[version.name, version.number] += 1
        return Lease(version, lambda: self._end(version))

    def in_use(self, name: str, number: int | None = None) -> bool:
        """Whether somebody has a lease that was taken under this name, or on this version of it."""
        with self._lock:
            return any(leased == name and number in (None, its) for leased, its in self._leased)

    @contextmanager
    def holding(self, id: AdapterId) -> Iterator[None]:
        """While bytes are stored but not yet named, nobody else's delete may remove them; if naming fails, we do.

        Not so where it may have been done: a name that the next start finds has its bytes, or else that start removes
        them.
        """
        with self._lock:
            self._hold(id)
        try:
            yield
        except Unsettled:
            raise
        except BaseException:
            with self._lock:
                self._doomed.add(id)
            raise
        finally:
            self._release(id)

    def remove_unused(self, ids: Iterable[AdapterId]) -> None:
        """Now, or when the last lease is back."""
        for id in ids:
            self._remove_if_unused(id)

    def _hold(self, id: AdapterId) -> None:
        assert self._lock.locked(), "uses are counted under the lock"
        self._uses[id] = self._uses.get(id, 0) + 1

    def _end(self, version: Version) -> None:
        with self._lock:
            self._leased -= Counter([(version.name, version.number)])  # drops what comes to nothing
        self._release(version.id)

    def _release(self, id: AdapterId) -> None:
        with self._lock:
            self._uses[id] -= 1
            if self._uses[id]:
                return
            del self._uses[id]
            if id not in self._doomed:
                return
        self._remove_if_unused(id)

    def _remove_if_unused(self, id: AdapterId) -> None:
        """The lock keeps `lease` and uploads from taking hold in between.

        The name is gone already, so trouble with the bytes is logged, and the next start removes them.
        """
        with self._lock:
            if id in self._uses:
                self._doomed.add(id)
                return
            self._doomed.discard(id)
            try:
                if self._registry.is_used(id):
                    return
                self._store.delete(id)
            except OSError:
                log.exception("the blob %s was not removed; the next start does it", id)
        self._on_forgotten(id)
