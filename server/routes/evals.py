"""PUT and GET /v1/adapters/{name}/eval: the rows that a version is measured on before it is promoted.

Owns those routes. What the rows mean is evaluation.py's.
"""

from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from adapters.errors import UnknownAdapter
from adapters.evaluations import EVAL_BYTES
from server.body import check_encoding, read_bounded
from server.deps import RequireScope, ServicesDep, accepting, in_thread
from server.evaluation import read_eval
from server.principal import Scope

router = APIRouter(tags=["adapters"])

MEDIA_TYPE = "application/jsonl"


class Rows(Response):
    """A JSON object a line."""

    media_type = MEDIA_TYPE


_BODY = {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}


@router.put(
    "/v1/adapters/{name}/eval",
    dependencies=[Depends(RequireScope(Scope.WRITE)), Depends(accepting)],
    openapi_extra={"requestBody": _BODY},
)
async def put_eval(name: str, http: HttpRequest, services: ServicesDep) -> dict[str, Any]:
    """Give a version its eval file, in place of one that it had: the newest version, or the one `name@3` means."""
    version = await in_thread(services.tenant_catalog.resolve, name)
    check_encoding(http)
    content = await read_bounded(http, EVAL_BYTES, None, services.limits.idle_s)
    items = await in_thread(read_eval, content, services.tokenizer, services.limits.max_model_len)
    await in_thread(services.tenant_catalog.attach_eval, version, content)
    return {"object": "eval", "name": version.name, "version": version.number, "rows": len(items)}


@router.get("/v1/adapters/{name}/eval", response_class=Rows, dependencies=[Depends(RequireScope(Scope.READ))])
async def get_eval(name: str, services: ServicesDep) -> Response:
    """The eval file that a version carries. 404 when it carries none."""
    version = await in_thread(services.tenant_catalog.resolve, name)
    found = await in_thread(services.tenant_catalog.eval_file, version)
    if found is None:
        raise UnknownAdapter("This version carries no eval file.")
    return Rows(found.content)
