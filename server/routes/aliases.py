"""/v1/adapters/{name}/aliases/{alias}: where a word such as `prod` points.

Owns those routes and their conditions. Running requests keep the version they began with, because they hold its id.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.body import StrictRoute
from server.deps import ServicesDep, accepting, in_thread, needs
from server.etag import condition, etag
from server.fields import Strict
from server.principal import Scope
from server.routes.adapters import card

router = APIRouter(route_class=StrictRoute, dependencies=[Depends(accepting)], tags=["adapters"])


class AliasBody(Strict):
    version: Annotated[int, Field(ge=1, lt=1 << 63)]


@router.put("/v1/adapters/{name}/aliases/{alias}", dependencies=[Depends(needs(Scope.WRITE))])
async def set_alias(name: str, alias: str, body: AliasBody, http: HttpRequest, services: ServicesDep) -> Response:
    """Point an alias at a version; the next request that names it gets that version. If-Match makes it conditional."""
    version = await in_thread(services.catalog.set_alias, name, alias, body.version, condition(http))
    return JSONResponse(await card(services, version), headers=etag(version))


@router.delete("/v1/adapters/{name}/aliases/{alias}", dependencies=[Depends(needs(Scope.WRITE))])
async def delete_alias(name: str, alias: str, http: HttpRequest, services: ServicesDep) -> dict[str, Any]:
    """Remove an alias. The versions stay. If-Match makes it conditional."""
    await in_thread(services.catalog.delete_alias, name, alias, condition(http))
    return {"name": name, "alias": alias, "object": "alias", "deleted": True}
