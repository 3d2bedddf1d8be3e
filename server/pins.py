"""Keeping the engine's pins equal to the catalog's.

A pin belongs to a name, and means its newest version; the engine pins ids. Knows both, and no routes.
"""

from server.deps import in_thread
from server.ports import Services


async def follow_pins(services: Services) -> None:
    """Pin what the catalog says is pinned and unpin the rest. Raises AdapterTooLarge; calling it again is harmless."""
    wanted = {version.id for version in await in_thread(services.catalog.pinned)}
    actual = {resident.id for resident in services.worker.residents() if resident.pinned}
    for adapter in actual - wanted:
        await services.worker.unpin(adapter)
    for adapter in wanted - actual:
        await services.worker.pin(adapter)
