"""POST /v1/adapters/{name}/versions: a version of what the caller has under another name, without sending it.

Owns that route. Whose content it is, the catalog knows.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.audit import note_upload
from server.body import StrictRoute
from server.cards import adapter_card
from server.deps import PrincipalDep, RequireScope, ServicesDep, accepting, in_thread
from server.etag import condition, etag
from server.openapi import STORED
from server.pins import follow_pins_if_possible
from server.principal import Scope
from server.strict import Strict
from server.upload_quota import upload_quota

router = APIRouter(route_class=StrictRoute, tags=["adapters"])


class CopyBody(Strict):
    source: Annotated[str, Field(max_length=512, description="A version of the caller's own, such as `sql@3`.")]
    alias: Annotated[str | None, Field(max_length=512, description="A word to point at the new version.")] = None


@router.post(
    "/v1/adapters/{name}/versions",
    dependencies=[Depends(RequireScope(Scope.WRITE)), Depends(accepting)],
    status_code=201,
    responses=STORED,
)
async def copy_version(
    name: str, body: CopyBody, http: HttpRequest, services: ServicesDep, caller: PrincipalDep
) -> Response:
    """Add `source` to `name`. 201 when its content is new to `name`, else 200. Conditions are those of an upload."""
    services.tenant_catalog.check_names(name, body.alias)
    async with upload_quota(0, services, caller) as quota:
        await quota.keep(name)
        version, created = await in_thread(services.tenant_catalog.copy, body.source, name, body.alias, condition(http))
    await follow_pins_if_possible(services)
    note_upload(version, created)
    return JSONResponse(
        await adapter_card(services, version), status_code=201 if created else 200, headers=etag(version)
    )
