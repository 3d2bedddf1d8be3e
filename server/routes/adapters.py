"""/v1/adapters: upload, list, show, delete.

Owns those routes. The bytes are read by `upload.py` and judged by the catalog.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapters.condition import Condition
from adapters.manifest import AdapterId
from adapters.version import Version
from loader.digests import DIGEST
from server.audit import note_upload
from server.cards import adapter_card, adapter_cards, listing
from server.deletion import delete_adapter
from server.deps import PrincipalDep, RequireScope, ServicesDep, accepting, in_thread, in_upload_thread
from server.etag import condition, etag
from server.evaluation import read_eval
from server.openapi import IN_USE, STORED
from server.pins import follow_pins_if_possible
from server.ports import Services
from server.principal import Scope
from server.upload import FORM, Upload, receive_upload, reserving
from server.upload_quota import UploadQuota, declared_bytes, upload_quota

router = APIRouter(tags=["adapters"])

ContentId = Annotated[str | None, Query(pattern=f"^{DIGEST}$", description="An adapter's `id`.")]


@router.post(
    "/v1/adapters",
    dependencies=[Depends(RequireScope(Scope.WRITE)), Depends(accepting)],
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}},
    status_code=201,
    responses=STORED,
)
async def upload_adapter(http: HttpRequest, services: ServicesDep, caller: PrincipalDep) -> Response:
    """Add a version to an adapter, or a new adapter. 201 when it is new, 200 when the same bytes were there.

    If-Match names the version that must be the newest one; `If-None-Match: *` asks that there be none.
    """
    asked = condition(http)
    with services.lifecycle.answering():
        declared = declared_bytes(http, services.limits.max_upload_bytes)
        async with upload_quota(declared, services, caller) as quota:
            await quota.begin()
            async with (
                reserving(services.uploads, caller.tenant, declared) as reservation,
                receive_upload(http, services.form_dir, services.limits, reservation) as upload,
            ):
                version, created = await _store(upload, services, quota, asked)
        await follow_pins_if_possible(services)
    note_upload(version, created)
    return JSONResponse(
        await adapter_card(services, version), status_code=201 if created else 200, headers=etag(version)
    )


async def _store(
    upload: Upload, services: Services, quota: UploadQuota, asked: Condition | None
) -> tuple[Version, bool]:
    """A version of a form that has arrived; nothing is stored if its eval file is wrong."""
    await quota.end(upload.name)
    if upload.eval is not None:
        await in_thread(read_eval, upload.eval, services.tokenizer, services.limits.max_model_len)
    add = services.tenant_catalog.add
    return await in_upload_thread(
        services, add, upload.name, upload.config, upload.weights, upload.alias, asked, upload.eval
    )


@router.get("/v1/adapters", dependencies=[Depends(RequireScope(Scope.READ))])
async def list_adapters(services: ServicesDep, id: ContentId = None) -> dict[str, Any]:
    """The newest version of every adapter; with `id`, every version of the caller's own that has this content."""
    if id is not None:
        return listing(
            await adapter_cards(services, await in_thread(services.tenant_catalog.with_content, AdapterId(id)))
        )
    return listing(await adapter_cards(services, await in_thread(services.tenant_catalog.newest)))


@router.get("/v1/adapters/{name}", dependencies=[Depends(RequireScope(Scope.READ))])
async def show_adapter(name: str, services: ServicesDep) -> Response:
    """One adapter's newest version, or the one that `name@3`, `name@alias` or `name@sha256:…` means."""
    version = await in_thread(services.tenant_catalog.resolve, name)
    return JSONResponse(await adapter_card(services, version), headers=etag(version))


@router.get("/v1/adapters/{name}/versions", dependencies=[Depends(RequireScope(Scope.READ))])
async def list_versions(name: str, services: ServicesDep) -> dict[str, Any]:
    """Every version of one adapter."""
    return listing(await adapter_cards(services, await in_thread(services.tenant_catalog.versions, name)))


@router.delete(
    "/v1/adapters/{name}", dependencies=[Depends(RequireScope(Scope.WRITE)), Depends(accepting)], responses=IN_USE
)
async def remove_adapter(name: str, http: HttpRequest, services: ServicesDep, response: Response) -> dict[str, Any]:
    """Delete an adapter with all its versions, or one version, as `name@2`, that no alias points at.

    202 when requests run on it: they finish, and its bytes go after them. If-Match names the version that must be the
    newest one.
    """
    response.status_code = await delete_adapter(services, name, condition(http))
    return {"name": name, "object": "adapter", "deleted": True}
