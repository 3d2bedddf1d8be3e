"""/v1/models: the base and the adapters as OpenAI's clients list them.

Owns those three routes. Knows the catalog; knows no engine.
"""

from typing import Any

from fastapi import APIRouter, Depends
from starlette.responses import Response

from server.cards import base_card, listing, model_card
from server.deletion import delete_adapter
from server.deps import RequireScope, ServicesDep, accepting, in_thread
from server.errors import NO_RETRY, ApiError
from server.openapi import IN_USE
from server.principal import Scope
from server.resolve import reference, target

router = APIRouter(tags=["models"])


@router.get("/v1/models", dependencies=[Depends(RequireScope(Scope.READ))])
async def list_models(services: ServicesDep) -> dict[str, Any]:
    """The base first, then the newest version of every adapter that it can serve."""
    versions = await in_thread(services.tenant_catalog.newest)
    served = [version for version in versions if services.tenant_catalog.misfit(version) is None]
    return listing([base_card(services), *(model_card(services, version) for version in served)])


@router.get("/v1/models/{id:path}", dependencies=[Depends(RequireScope(Scope.READ))])
async def show_model(id: str, services: ServicesDep) -> dict[str, Any]:
    """One model, by any of its spellings."""
    found = await target(services.tenant_catalog, services.base_id, id)
    try:
        return base_card(services) if found.lease is None else model_card(services, found.lease.version, id)
    finally:
        found.release()


@router.delete(
    "/v1/models/{id:path}", dependencies=[Depends(RequireScope(Scope.WRITE)), Depends(accepting)], responses=IN_USE
)
async def delete_model(id: str, services: ServicesDep, response: Response) -> dict[str, Any]:
    """Delete an adapter with all its versions; 202 when requests run on it. The base stays."""
    name = reference(id, None, services.base_id)
    if name is None:
        message = "The base cannot be deleted; it is what this server serves."
        raise ApiError(409, message, param="model", code="name_reserved", headers=NO_RETRY)
    response.status_code = await delete_adapter(services, name)
    return {"id": name, "object": "model", "deleted": True}
