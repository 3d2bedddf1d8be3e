"""Health, version, metrics and the API's description, for orchestrators, scrapers and people who look around.

Owns those routes. None of them touches a queue, so they answer while everything else is busy. Probes and the version
are the only routes of the server that ask for no key: orchestrators have none, and clients look before they send one.
"""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from server.deps import RequireScope, ServerDep
from server.openapi import UNWELL
from server.principal import Scope
from server.version import version

router = APIRouter(tags=["operations"])


HUNG_S = 300.0
"""No step lasts this long: neither a full chunk of prompts on a slow CPU nor the merge of a large base."""


@router.get("/livez", responses=UNWELL)
async def live(services: ServerDep) -> Response:
    """200 while the engine's thread comes round or starts over, also during a drain; 503 calls for a restart.

    `engine_restarts` is how many engines have failed and been replaced.
    """
    worker = services.worker
    status = "alive"
    if not worker.alive:
        status = "dead"
    elif worker.silent_s > HUNG_S:
        status = "hung"
    elif worker.restarting:
        status = "restarting"
    health = {"status": status, "engine_restarts": worker.restarts}
    return JSONResponse(health, status_code=503 if status in ("dead", "hung") else 200)


@router.get("/readyz", responses=UNWELL)
async def ready(services: ServerDep) -> Response:
    """200 when new requests are taken, 503 while loading or draining."""
    is_ready, status = services.ready, services.lifecycle.phase.value
    headers = {} if is_ready else {"retry-after": "2"}
    return JSONResponse({"status": status}, status_code=200 if is_ready else 503, headers=headers)


@router.get("/health", response_class=Response, responses={503: {"description": "The engine is down."}})
async def health(services: ServerDep) -> Response:
    """vLLM's probe: an empty 200, or 503."""
    return Response(status_code=200 if services.worker.alive else 503)


@router.get("/version")
async def show_version(services: ServerDep) -> dict[str, Any]:
    """The server's version, the base it serves, and the quantization that adapters are held against."""
    base = services.server_catalog.base
    return {
        "version": version(),
        "base": services.base_id,
        "quantization": base.quantization,
        "allows_other_quantization": base.allows_other_quantization,
    }


@router.get("/metrics", response_class=PlainTextResponse, dependencies=[Depends(RequireScope(Scope.ADMIN))])
def metrics(services: ServerDep) -> Response:
    """Prometheus' text format."""
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", dependencies=[Depends(RequireScope(Scope.ADMIN))], include_in_schema=False)
def openapi(http: HttpRequest) -> Response:
    """The schema of every route."""
    return JSONResponse(http.app.openapi())


@router.get("/docs", dependencies=[Depends(RequireScope(Scope.ADMIN))], include_in_schema=False)
def docs(http: HttpRequest) -> Response:
    """The same for people, in a browser."""
    return get_swagger_ui_html(openapi_url="/openapi.json", title=http.app.title)
