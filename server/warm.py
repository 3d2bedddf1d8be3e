"""Remembering which adapters are resident, so that the next start is warm.

Owns the periodic note to the catalog. Knows the worker's snapshot; loads nothing itself.
"""

import asyncio

import structlog

from adapters.catalog import Catalog
from adapters.manifest import AdapterId
from server.deps import in_thread
from server.ports import Worker

_log = structlog.get_logger(__name__)

PERIOD_S = 5.0


class ResidentMemory:
    """Writes the resident set down when it has changed."""

    def __init__(self, worker: Worker, catalog: Catalog) -> None:
        self._worker, self._catalog = worker, catalog
        self._known: list[AdapterId] | None = None

    async def keep(self, period_s: float = PERIOD_S) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.note()
            except Exception:
                _log.exception("residents_not_remembered")

    async def note(self) -> None:
        residents = list(dict.fromkeys(resident.id for resident in self._worker.residents()))
        if residents != self._known:
            await in_thread(self._catalog.remember_residents, residents)
            self._known = residents
