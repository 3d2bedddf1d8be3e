"""Keeping the engine's pins equal to the catalog's.

A pin belongs to a name, and means its newest version; the engine pins ids. Knows both, and no routes.
"""

import structlog

from adapters.errors import AdapterError
from engine.errors import AdapterTooLarge
from server.deps import in_thread
from server.ports import Services

_log = structlog.get_logger(__name__)


async def follow_pins(services: Services) -> None:
    """Pin what the catalog says is pinned and unpin the rest. Raises AdapterTooLarge; calling it again is harmless."""
    async with services.pinning:
        wanted = {version.id for version in await in_thread(services.catalog.pinned)}
        for adapter in services.worker.pins() - wanted:
            await services.worker.unpin(adapter)
        for adapter in wanted - services.worker.pins():
            await services.worker.pin(adapter)


async def restore_pins(services: Services) -> None:
    """At the start: a pin whose adapter is lost, or no longer fits, is logged and does not keep the server down."""
    for version in await in_thread(services.catalog.pinned):
        try:
            await services.worker.pin(version.id)
        except (AdapterError, AdapterTooLarge, OSError) as error:
            _log.error("pin_not_restored", name=version.name, id=version.id, reason=str(error))
