"""/v1/adapters: upload, list, show, delete.

Owns those routes. The bytes are read by `upload.py` and judged by the catalog.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapters.condition import Condition
from adapters.manifest import AdapterId
from adapters.registry import Version
from loader.digests import DIGEST
from server.audit import note, note_upload
from server.cards import adapter_card, listing, tiers_of
from server.deps import PrincipalDep, ServicesDep, accepting, in_thread, judging, needs
from server.errors import NO_RETRY, ApiError, BadRequest
from server.etag import condition, etag
from server.evaluation import read_eval
from server.openapi import STORED
from server.pins import follow_pins_if_possible
from server.ports import Services
from server.principal import Scope
from server.upload import FORM, Upload, receive_upload, reserving
from server.upload_quota import UploadQuota, declared_bytes, upload_quota

router = APIRouter(tags=["adapters"])

IN_USE: dict[int | str, dict[str, Any]] = {
    202: {"description": "The name is gone. Requests that run on it finish, and its bytes go after the last of them."}
}
ContentId = Annotated[str | None, Query(pattern=f"^{DIGEST}$", description="An adapter's `id`.")]


@router.post(
    "/v1/adapters",
    dependencies=[Depends(needs(Scope.WRITE)), Depends(accepting)],
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
    return JSONResponse(await card(services, version), status_code=201 if created else 200, headers=etag(version))


async def _store(
    upload: Upload, services: Services, quota: UploadQuota, asked: Condition | None
) -> tuple[Version, bool]:
    """A version of a form that has arrived; nothing is stored if its eval file is wrong."""
    await quota.end(upload.name)
    if upload.eval is not None:
        await in_thread(read_eval, upload.eval, services.tokenizer, services.limits.max_model_len)
    add = services.tenant_catalog.add
    return await judging(services, add, upload.name, upload.config, upload.weights, upload.alias, asked, upload.eval)


@router.get("/v1/adapters", dependencies=[Depends(needs(Scope.READ))])
async def list_adapters(services: ServicesDep, id: ContentId = None) -> dict[str, Any]:
    """The newest version of every adapter; with `id`, every version of the caller's own that has this content."""
    if id is not None:
        return listing(await cards(services, await in_thread(services.tenant_catalog.with_content, AdapterId(id))))
    return listing(await cards(services, await in_thread(services.tenant_catalog.newest)))


@router.get("/v1/adapters/{name}", dependencies=[Depends(needs(Scope.READ))])
async def show_adapter(name: str, services: ServicesDep) -> Response:
    """One adapter's newest version, or the one that `name@3`, `name@alias` or `name@sha256:…` means."""
    version = await in_thread(services.tenant_catalog.resolve, name)
    return JSONResponse(await card(services, version), headers=etag(version))


@router.get("/v1/adapters/{name}/versions", dependencies=[Depends(needs(Scope.READ))])
async def list_versions(name: str, services: ServicesDep) -> dict[str, Any]:
    """Every version of one adapter."""
    return listing(await cards(services, await in_thread(services.tenant_catalog.versions, name)))


@router.delete("/v1/adapters/{name}", dependencies=[Depends(needs(Scope.WRITE)), Depends(accepting)], responses=IN_USE)
async def remove_adapter(name: str, http: HttpRequest, services: ServicesDep, response: Response) -> dict[str, Any]:
    """Delete an adapter with all its versions, or one version, as `name@2`, that no alias points at.

    202 when requests run on it: they finish, and its bytes go after them. If-Match names the version that must be the
    newest one.
    """
    response.status_code = await delete_adapter(services, name, condition(http))
    return {"name": name, "object": "adapter", "deleted": True}


async def delete_adapter(services: Services, name: str, asked: Condition | None = None) -> int:
    """The status: 200, or 202 when requests run on it.

    Raises UnknownAdapter, UnknownVersion, VersionInUse, NotOwner, ConditionFailed; 409 while it is merged under this
    name.
    """
    whole, number = _name_and_number(name)
    versions = await in_thread(services.tenant_catalog.own_versions, whole)
    if any(services.merges.has(services.worker, each) for each in versions if number in (None, each.number)):
        path = f"/v1/adapters/{whole}/merge"
        raise ApiError(409, f"This adapter is merged. DELETE {path} first.", code="merged", headers=NO_RETRY)
    if number is None:
        in_use = await in_thread(services.tenant_catalog.delete, whole, asked)
        await services.merges.let_go(services.worker, versions[0].full_name)  # if a merge ended while it was deleted
    else:
        in_use = await in_thread(services.tenant_catalog.delete_version, whole, number, asked)
    note("adapter_deleted", name=name)
    await follow_pins_if_possible(services)
    return 202 if in_use else 200


def _name_and_number(name: str) -> tuple[str, int | None]:
    whole, at, selector = name.partition("@")
    if at and not selector.isdecimal():
        raise BadRequest(
            "Give the adapter's name alone, or a version's number behind the @. An alias is deleted by DELETE "
            "/v1/adapters/NAME/aliases/ALIAS.",
            "name",
        )
    return whole, int(selector) if at else None


async def card(services: Services, version: Version) -> dict[str, Any]:
    return (await cards(services, [version]))[0]


async def cards(services: Services, versions: list[Version]) -> list[dict[str, Any]]:
    """A pin is shown once the engine holds it; pins and merges are shown for the name that asked for them."""
    damaged, pins = (
        await in_thread(services.server_catalog.quarantined),
        await in_thread(services.server_catalog.pinned),
    )
    held, tiers = services.worker.pins(), dict.fromkeys(damaged, "corrupt") | tiers_of(services.worker)
    pinned = {(version.full_name, version.id) for version in pins if version.id in held}
    return [
        adapter_card(
            services,
            version,
            services.merges.shown(version, tiers.get(version.id, "disk")),
            (version.full_name, version.id) in pinned,
        )
        for version in versions
    ]
