"""/v1/adapters/{name}/pin and /merge: keeping an adapter on the device, or giving it merged weights.

Owns those routes. Knows the worker and the catalog.
"""

from typing import Any

from fastapi import APIRouter, Depends

from adapters.errors import UnknownAdapter
from adapters.version import Version
from server.cards import adapter_card
from server.deps import RequireScope, ServicesDep, accepting, in_thread
from server.errors import NO_RETRY, ApiError, BadRequest
from server.pins import follow_pins
from server.ports import Services
from server.principal import Scope

router = APIRouter(dependencies=[Depends(accepting)], tags=["adapters"])


@router.post("/v1/adapters/{name}/pin", dependencies=[Depends(RequireScope(Scope.ADMIN))])
async def pin(name: str, services: ServicesDep) -> dict[str, Any]:
    """Keep an adapter's newest version on the device, now and after restarts.

    400 for a single version: a pin goes on to the next one.
    """
    _check_whole(name)
    before = await in_thread(services.server_catalog.pinned)
    asked = await in_thread(services.tenant_catalog.set_pinned, name, True)
    try:
        await follow_pins(services)
    except Exception:
        if asked.full_name not in {version.full_name for version in before}:
            await in_thread(services.tenant_catalog.set_pinned, name, False)
        raise
    return await adapter_card(services, await in_thread(services.tenant_catalog.resolve, name))


@router.delete("/v1/adapters/{name}/pin", dependencies=[Depends(RequireScope(Scope.ADMIN))])
async def unpin(name: str, services: ServicesDep) -> dict[str, Any]:
    """Let the adapter be evicted again. 400 for a single version."""
    _check_whole(name)
    await in_thread(services.tenant_catalog.set_pinned, name, False)
    await follow_pins(services)
    return await adapter_card(services, await in_thread(services.tenant_catalog.resolve, name))


def _check_whole(name: str) -> None:
    if "@" in name:
        raise BadRequest("A pin is of a name, and means its newest version. Give the adapter's name alone.", "name")


@router.post("/v1/adapters/{name}/merge", dependencies=[Depends(RequireScope(Scope.ADMIN))])
async def merge(name: str, services: ServicesDep) -> dict[str, Any]:
    """Serve an adapter from merged weights of its own. All others, and the base, keep the pristine ones."""
    lease = await in_thread(services.tenant_catalog.lease, name)
    try:
        with services.lifecycle.answering():
            await services.merges.merge(services.worker, lease.version)
        await _keep_if_named(services, lease.version)
        return await adapter_card(services, lease.version)
    finally:
        await in_thread(lease.release)


async def _keep_if_named(services: Services, version: Version) -> None:
    """A merge may wait long. Raises UnknownAdapter if the name was deleted meanwhile: nobody could end it."""
    try:
        await in_thread(services.server_catalog.versions, version.full_name)
    except UnknownAdapter:
        await services.merges.release(services.worker, version.full_name)
        raise


@router.delete("/v1/adapters/{name}/merge", dependencies=[Depends(RequireScope(Scope.ADMIN))])
async def unmerge(name: str, services: ServicesDep) -> dict[str, Any]:
    """Drop the merged weights. `name` may be any version of the merged adapter."""
    versions = await in_thread(services.tenant_catalog.versions, name.partition("@")[0])
    found = next((version for version in versions if services.merges.has(services.worker, version)), None)
    if found is None:
        raise ApiError(409, "This adapter is not merged.", code="not_merged", headers=NO_RETRY)
    await services.merges.release(services.worker, found.full_name)
    return await adapter_card(services, found)
