"""Keeping the engine's pins equal to the catalog's.

A pin belongs to a name, and means its newest version; the engine pins ids. Knows both, and no routes.
"""

import structlog

from adapters.errors import AdapterError
from engine.errors import EngineError
from server.deps import in_thread
from server.ports import Services

_log = structlog.get_logger(__name__)
_TROUBLE = (AdapterError, EngineError, OSError)


async def follow_pins(services: Services) -> None:
    """Pin what the catalog says is pinned and unpin the rest; calling it again is harmless.

    What the base cannot serve is left alone. Every pin is tried before AdapterTooLarge or another error is raised.
    """
    async with services.pinning:
        pinned = await in_thread(services.server_catalog.pinned)
        wanted = {version.id for version in pinned if services.server_catalog.misfit(version) is None}
        for adapter in services.worker.pins() - wanted:
            await services.worker.unpin(adapter)
        failed: Exception | None = None
        for adapter in wanted - services.worker.pins():
            try:
                await services.worker.pin(adapter)
            except _TROUBLE as error:
                failed = error
        if failed is not None:
            raise failed


async def follow_pins_if_possible(services: Services) -> None:
    """After a change that stands whatever becomes of the pins: trouble with them is logged, and shows in the cards."""
    try:
        await follow_pins(services)
    except _TROUBLE as error:
        _log.error("pins_not_followed", reason=str(error))


async def restore_pins(services: Services) -> None:
    """At the start: a pin whose adapter is lost, or no longer fits, is logged and does not keep the server down."""
    for version in await in_thread(services.server_catalog.pinned):
        if services.server_catalog.misfit(version) is not None:
            continue  # it was told when the catalog was swept
        try:
            await services.worker.pin(version.id)
        except _TROUBLE as error:
            _log.error("pin_not_restored", name=version.name, id=version.id, reason=str(error))
