"""Remembering which adapters are resident, so that the next start is warm.

Owns the note to the catalog, and that it is made only when something has changed. Knows the worker's snapshot; loads
nothing itself, and does not know when it is asked.
"""

from adapters.catalog import Catalog
from adapters.manifest import AdapterId
from server.deps import in_thread
from server.ports import Worker


class ResidentRecorder:
    """Writes the resident set down when it has changed."""

    def __init__(self, worker: Worker, catalog: Catalog) -> None:
        self._worker, self._catalog = worker, catalog
        self._known: list[AdapterId] | None = None

    async def save(self) -> None:
        residents = list(dict.fromkeys(resident.id for resident in self._worker.residents()))
        if residents != self._known:
            await in_thread(self._catalog.remember_residents, residents)
            self._known = residents
