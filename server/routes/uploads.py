"""/v1/adapters/uploads: uploads in pieces that survive cut connections and restarts, in the flow of OCI registries.

Owns those routes: begin, PATCH, look, finish with PUT, cancel. What a tenant may do with an upload is decided in
`adapters/uploads.py`; the finished file is judged by the catalog.
"""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import AfterValidator, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapters.evaluations import EVAL_BYTES
from adapters.upload_files import UploadSession, UploadSpec
from adapters.version import Version
from loader.digests import DIGEST, is_digest
from server.audit import note_upload
from server.body import StrictRoute, check_declared, check_encoding
from server.cards import adapter_card, listing
from server.chunk import appending, declared_offset, pour
from server.deps import PrincipalDep, RequireScope, ServicesDep, accepting, in_thread, in_upload_thread
from server.errors import BadRequest, TooLarge, offset_headers
from server.etag import condition, etag
from server.evaluation import read_eval
from server.form import CONFIG_BYTES
from server.openapi import BEGUN, CONTINUED, PIECE, STORED
from server.pins import follow_pins_if_possible
from server.ports import Services
from server.principal import Scope
from server.strict import Strict
from server.upload_quota import upload_quota

RESERVED = frozenset({"uploads"})
"""Words that stand in a path where an adapter's name may stand."""

_FLAG = "--max-upload-bytes"


def _nothing_beside(digest: str | None) -> str | None:
    """A pattern is found anywhere in what is sent. Raises ValueError."""
    if digest is not None and not is_digest(digest):
        raise ValueError("a digest is sha256: and 64 hexadecimal digits, with nothing before or behind")
    return digest


READ, WRITE = Depends(RequireScope(Scope.READ)), Depends(RequireScope(Scope.WRITE))

router = APIRouter(route_class=StrictRoute, tags=["uploads"])


class OrderBody(Strict):
    name: Annotated[str, Field(max_length=512)]
    alias: Annotated[str | None, Field(max_length=512, description="A word to point at the new version.")] = None
    config: Annotated[str, Field(max_length=CONFIG_BYTES, description="The text of adapter_config.json.")]
    size: Annotated[int, Field(ge=1, lt=1 << 60, description="Bytes of adapter_model.safetensors.")]
    digest: Annotated[
        str | None,
        Field(pattern=DIGEST, description="SHA-256 of those bytes; an upload of them goes on."),
        AfterValidator(_nothing_beside),
    ] = None
    eval: Annotated[
        str | None, Field(max_length=EVAL_BYTES, description="The text of eval.jsonl, which `promote` measures on.")
    ] = None


@router.post("/v1/adapters/uploads", dependencies=[WRITE, Depends(accepting)], status_code=201, responses=BEGUN)
async def begin_upload(body: OrderBody, services: ServicesDep, caller: PrincipalDep) -> Response:
    """Begin an upload, or go on with the one that was begun with the same words. 201 when it is new, else 200."""
    if body.size > services.limits.max_upload_bytes:
        raise TooLarge(services.limits.max_upload_bytes, _FLAG)
    services.tenant_catalog.check_names(body.name, body.alias)
    rows = None if body.eval is None else body.eval.encode()
    if rows is not None and len(rows) > EVAL_BYTES:
        raise TooLarge(EVAL_BYTES, None)
    spec = UploadSpec(caller.tenant, body.name, body.alias, body.config.encode(), body.size, body.digest, rows)
    async with upload_quota(body.size, services, caller) as quota:
        await quota.begin()
        await quota.keep(body.name)
        if rows is not None:
            await in_thread(read_eval, rows, services.tokenizer, services.limits.max_model_len)
        session, created = await in_thread(services.uploads.begin, spec)
    _, offset = await in_thread(services.uploads.find, caller.tenant, session.id)
    return _shown(services, session, offset, 201 if created else 200)


@router.get("/v1/adapters/uploads", dependencies=[READ])
async def list_uploads(services: ServicesDep, caller: PrincipalDep) -> dict[str, Any]:
    """The caller's uploads, oldest first."""
    found = await in_thread(services.uploads.for_tenant, caller.tenant)
    return listing(upload_card(services, session, offset) for session, offset in found)


@router.get("/v1/adapters/uploads/{id}", dependencies=[READ])
@router.head("/v1/adapters/uploads/{id}", dependencies=[READ])
async def show_upload(id: str, services: ServicesDep, caller: PrincipalDep) -> Response:
    """How far an upload has come, and what became of it."""
    session, offset = await in_thread(services.uploads.find, caller.tenant, id)
    return _shown(services, session, offset, 200)


@router.patch(
    "/v1/adapters/uploads/{id}",
    dependencies=[WRITE, Depends(accepting)],
    status_code=202,
    responses=CONTINUED,
    openapi_extra=PIECE,
)
async def continue_upload(id: str, http: HttpRequest, services: ServicesDep, caller: PrincipalDep) -> Response:
    """Append bytes at Upload-Offset, or at the beginning of Content-Range; 416 when they do not follow the others."""
    check_encoding(http)
    session, _ = await in_thread(services.uploads.find, caller.tenant, id)
    offset = declared_offset(http)
    with services.lifecycle.answering():
        async with appending(services.uploads, caller.tenant, id, offset) as writer:
            check_declared(http, session.size - offset, _FLAG)
            await pour(http, writer, services.limits.idle_s)
    return _shown(services, session, writer.offset, 202)


@router.put("/v1/adapters/uploads/{id}", dependencies=[WRITE, Depends(accepting)], status_code=201, responses=STORED)
async def finish_upload(
    id: str, digest: str, http: HttpRequest, services: ServicesDep, caller: PrincipalDep
) -> Response:
    """Make a version of an upload whose bytes are all there. 201 when it is new, 200 when its content was there."""
    if not is_digest(digest):
        raise BadRequest("`digest` is sha256: and the 64 hexadecimal digits of the weights file.", "digest")
    asked, catalog = condition(http), services.tenant_catalog

    def add(session: UploadSession, config: bytes, weights: Path, rows: bytes | None) -> tuple[Version, bool]:
        return catalog.add(session.name, config, weights, session.alias, asked, rows)

    session, there = await in_thread(services.uploads.find, caller.tenant, id)
    with services.lifecycle.answering():
        async with upload_quota(session.size, services, caller) as quota:
            if session.open and there == session.size:  # else nothing will be judged
                await quota.end(session.name)
            version, created = await in_upload_thread(services, services.uploads.finish, caller.tenant, id, digest, add)
        await follow_pins_if_possible(services)
    note_upload(version, created)
    return JSONResponse(
        await adapter_card(services, version), status_code=201 if created else 200, headers=etag(version)
    )


@router.delete("/v1/adapters/uploads/{id}", dependencies=[WRITE])
async def cancel_upload(id: str, services: ServicesDep, caller: PrincipalDep) -> dict[str, Any]:
    """Forget an upload and its bytes. A version that was made of it stays."""
    await in_thread(services.uploads.cancel, caller.tenant, id)
    return {"id": id, "object": "upload", "deleted": True}


def upload_card(services: Services, session: UploadSession, offset: int) -> dict[str, Any]:
    """`state` is pending, validating, ready or failed; `reason` says why it failed."""
    return {
        "id": session.id,
        "object": "upload",
        "name": session.name,
        "alias": session.alias,
        "size": session.size,
        "offset": offset,
        "state": session.state,
        "reason": session.reason,
        "version": session.version,
        "created": int(session.created),
        "expires": int(services.uploads.expires(session)),
    }


def _shown(services: Services, session: UploadSession, offset: int, status: int) -> Response:
    headers = offset_headers(offset) | {"location": f"/v1/adapters/uploads/{session.id}", "cache-control": "no-store"}
    return JSONResponse(upload_card(services, session, offset), status_code=status, headers=headers)
