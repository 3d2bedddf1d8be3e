"""/v1/adapters/{name}/pin and /merge: keeping an adapter on the device, or giving it merged weights.

Owns those routes. Knows the worker and the catalog.
"""

from typing import Any

from fastapi import APIRouter, Depends

from server.deps import ServicesDep, accepting, in_thread, needs
from server.errors import NO_RETRY, ApiError
from server.pins import follow_pins
from server.principal import Scope
from server.routes.adapters import card

router = APIRouter(dependencies=[Depends(accepting)], tags=["adapters"])


@router.post("/v1/adapters/{name}/pin", dependencies=[Depends(needs(Scope.ADMIN))])
async def pin(name: str, services: ServicesDep) -> dict[str, Any]:
    """Keep an adapter's newest version on the device, now and after restarts."""
    await in_thread(services.catalog.set_pinned, name, True)
    try:
        await follow_pins(services)
    except Exception:
        await in_thread(services.catalog.set_pinned, name, False)
        raise
    return await card(services, await in_thread(services.catalog.resolve, name))


@router.delete("/v1/adapters/{name}/pin", dependencies=[Depends(needs(Scope.ADMIN))])
async def unpin(name: str, services: ServicesDep) -> dict[str, Any]:
    """Let the adapter be evicted again."""
    await in_thread(services.catalog.set_pinned, name, False)
    await follow_pins(services)
    return await card(services, await in_thread(services.catalog.resolve, name))


@router.post("/v1/adapters/{name}/merge", dependencies=[Depends(needs(Scope.ADMIN))])
async def merge(name: str, services: ServicesDep) -> dict[str, Any]:
    """Serve an adapter from merged weights of its own. All others, and the base, keep the pristine ones."""
    lease = await in_thread(services.catalog.lease, name)
    try:
        with services.lifecycle.answering():
            await services.worker.merge(lease.version.id)
        return await card(services, lease.version)
    finally:
        await in_thread(lease.release)


@router.delete("/v1/adapters/{name}/merge", dependencies=[Depends(needs(Scope.ADMIN))])
async def unmerge(name: str, services: ServicesDep) -> dict[str, Any]:
    """Drop the merged weights. `name` may be any version of the merged adapter."""
    versions = await in_thread(services.catalog.versions, name.partition("@")[0])
    merged = services.worker.stats().merged
    found = next((version for version in versions if version.id == merged), None)
    if found is None:
        raise ApiError(409, "This adapter is not merged.", code="not_merged", headers=NO_RETRY)
    await services.worker.unmerge()
    return await card(services, found)
