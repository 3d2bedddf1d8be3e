"""Health, version and metrics, for orchestrators and scrapers.

Owns those routes. None of them touches a queue, so they answer while everything else is busy.
"""

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from server.deps import ServicesDep
from server.lifecycle import Phase
from server.version import version

router = APIRouter(tags=["operations"])


HUNG_S = 300.0
"""No step lasts this long: neither a full chunk of prompts on a slow CPU nor the merge of a large base."""


@router.get("/livez")
async def live(services: ServicesDep) -> Response:
    """200 while the engine's thread comes round, also during a drain; 503 calls for a restart."""
    worker = services.worker
    status = "dead" if not worker.alive else "hung" if worker.silent_s > HUNG_S else "alive"
    return JSONResponse({"status": status}, status_code=200 if status == "alive" else 503)


@router.get("/readyz")
async def ready(services: ServicesDep) -> Response:
    """200 when new requests are taken, 503 while loading or draining."""
    phase = services.lifecycle.phase
    taking = phase is Phase.READY and services.worker.alive
    headers = {} if taking else {"retry-after": "2"}
    return JSONResponse({"status": phase.value}, status_code=200 if taking else 503, headers=headers)


@router.get("/health")
async def health(services: ServicesDep) -> Response:
    """vLLM's probe: an empty 200, or 503."""
    return Response(status_code=200 if services.worker.alive else 503)


@router.get("/version")
async def show_version(services: ServicesDep) -> dict[str, Any]:
    """The server's version, the base it serves, and the quantization that adapters are held against."""
    base = services.catalog.base
    return {
        "version": version(),
        "base": services.base_id,
        "quantization": base.quantization,
        "allows_other_quantization": base.allows_other_quantization,
    }


@router.get("/metrics")
def metrics(services: ServicesDep) -> Response:
    """Prometheus' text format."""
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)
