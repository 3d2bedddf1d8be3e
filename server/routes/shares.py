"""/v1/adapters/{name}/shares: with whom its owner shares an adapter; and /v1/adapters/{owner}/{name}, what is shared.

Owns those routes. They are the last of the server's: the name of a shared adapter stands where other routes have words.
"""

from typing import Any

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from adapters.sharing import EVERYBODY
from server.audit import note
from server.cards import adapter_card, adapter_cards, listing
from server.deps import RequireScope, ServicesDep, accepting, in_thread
from server.etag import etag
from server.ports import Services
from server.principal import Scope

router = APIRouter(tags=["adapters"])

_READ = [Depends(RequireScope(Scope.READ))]
_WRITE = [Depends(RequireScope(Scope.WRITE)), Depends(accepting)]


@router.get("/v1/adapters/{name}/shares", dependencies=_READ)
async def show_shares(name: str, services: ServicesDep) -> dict[str, Any]:
    """With whom an adapter of the caller's is shared."""
    return await _shares(services, name)


@router.put("/v1/adapters/{name}/shares/{tenant}", dependencies=_WRITE)
async def share(name: str, tenant: str, services: ServicesDep) -> dict[str, Any]:
    """Let another tenant use all versions of an adapter, those to come included. Only its owner changes it."""
    return await _share(services, name, tenant)


@router.delete("/v1/adapters/{name}/shares/{tenant}", dependencies=_WRITE)
async def unshare(name: str, tenant: str, services: ServicesDep) -> dict[str, Any]:
    """No longer let that tenant use it. Requests that run on it finish."""
    return await _unshare(services, name, tenant)


@router.put("/v1/adapters/{name}/public", dependencies=_WRITE)
async def share_with_everybody(name: str, services: ServicesDep) -> dict[str, Any]:
    """Let every tenant of this server use it."""
    return await _share(services, name, EVERYBODY)


@router.delete("/v1/adapters/{name}/public", dependencies=_WRITE)
async def unshare_with_everybody(name: str, services: ServicesDep) -> dict[str, Any]:
    """Leave it to its owner and to those it is shared with by name."""
    return await _unshare(services, name, EVERYBODY)


@router.get("/v1/adapters/{owner}/{name}", dependencies=_READ)
async def show_shared(owner: str, name: str, services: ServicesDep) -> Response:
    """One adapter that its owner shares with the caller, by any of its spellings."""
    version = await in_thread(services.tenant_catalog.resolve, f"{owner}/{name}")
    return JSONResponse(await adapter_card(services, version), headers=etag(version))


@router.get("/v1/adapters/{owner}/{name}/versions", dependencies=_READ)
async def list_shared_versions(owner: str, name: str, services: ServicesDep) -> dict[str, Any]:
    """Every version of one that is shared with the caller."""
    return listing(await adapter_cards(services, await in_thread(services.tenant_catalog.versions, f"{owner}/{name}")))


async def _share(services: Services, name: str, tenant: str) -> dict[str, Any]:
    await in_thread(services.tenant_catalog.share, name, tenant)
    note("adapter_shared", name=name, to=tenant)
    return await _shares(services, name)


async def _unshare(services: Services, name: str, tenant: str) -> dict[str, Any]:
    await in_thread(services.tenant_catalog.unshare, name, tenant)
    note("adapter_unshared", name=name, to=tenant)
    return await _shares(services, name)


async def _shares(services: Services, name: str) -> dict[str, Any]:
    tenants = await in_thread(services.tenant_catalog.shared_with, name)
    return {"name": name, "object": "shares", "public": EVERYBODY in tenants, "tenants": sorted(tenants - {EVERYBODY})}
