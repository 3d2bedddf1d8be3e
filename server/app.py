"""The HTTP application: routes, errors and middleware, put together from what it is given.

Owns `create_app`. Knows every route; builds nothing of what they use. The table from errors to
status codes is in `errors.py`.
"""

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from server.connections import PROBES
from server.errors import TABLE, ApiError, ClientGone, api_error
from server.gauges import CatalogCollector, EngineCollector, Names, ServerCollector
from server.middleware import RequestLog
from server.openapi import ERRORS
from server.pacing import PacingMiddleware
from server.ports import Services
from server.routes import (
    adapters,
    aliases,
    chat,
    completions,
    copies,
    evals,
    models,
    ops,
    promote,
    residency,
    shares,
    uploads,
    usage,
    vllm,
)
from server.validation import bad_request
from server.version import version

_log = structlog.get_logger(__name__)

_ROUTERS = (
    ops, models, completions, chat, uploads, adapters, copies, aliases, promote, evals, residency, vllm, shares, usage
)  # fmt: skip


def create_app(services: Services) -> FastAPI:
    """One server's application. Two may live in one process: nothing is shared between them."""
    # FastAPI's own routes for the description take no dependencies, and so no keys; ops.py has it instead.
    app = FastAPI(title="Rootstock", version=version(), openapi_url=None, docs_url=None, redoc_url=None)
    app.state.services = services
    _register_collectors(services)
    for module in _ROUTERS:
        app.include_router(module.router, responses=ERRORS)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientGone, _gone)
    app.add_exception_handler(OSError, _disk)
    for kind, _ in TABLE:
        app.add_exception_handler(kind, _known_error)
    app.add_middleware(RequestLog, metrics=services.metrics, traces=services.traces)
    app.add_middleware(PacingMiddleware, unpaced=frozenset(path.decode() for path in PROBES))
    return app


def _register_collectors(services: Services) -> None:
    registry, labels = services.metrics.registry, services.metrics.labels
    registry.register(EngineCollector(services.worker, labels, Names(services.server_catalog)))
    services.metrics.label_canaries(services.server_catalog.splits)
    registry.register(CatalogCollector(services.server_catalog.splits, services.server_catalog.quarantined, labels))
    registry.register(ServerCollector(services))


_ROUTERS_WORDS = {
    404: ("There is no such route. GET /openapi.json lists them all.", "route_not_found"),
    405: ("This route does not take this method. GET /openapi.json lists what it takes.", "method_not_allowed"),
}


async def _http_error(request: Request, error: Exception) -> Response:
    """Our own refusals, and the router's 404 and 405, in OpenAI's envelope."""
    if isinstance(error, ApiError):
        return _response(request, error)
    assert isinstance(error, HTTPException)
    message, code = _ROUTERS_WORDS.get(error.status_code, ("The request could not be read.", "http_invalid"))
    return _response(request, ApiError(error.status_code, message, code=code, headers=error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _response(request, bad_request(error.errors()))


async def _known_error(request: Request, error: Exception) -> Response:
    known = api_error(error)
    assert known is not None, "a handler is registered for exactly the table's rows"
    return _response(request, known)


async def _disk(request: Request, error: Exception) -> Response:
    """A disk that is full or fails is told and logged; any other OSError stays our bug."""
    known = api_error(error)
    if known is None:
        raise error
    _log.error("storage", exc_info=error)
    return _response(request, known)


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads this; the status is for the log, as nginx writes it."""
    return Response(status_code=499)


def _response(request: Request, error: ApiError) -> Response:
    services: Services = request.app.state.services
    services.metrics.error(error.code)
    return JSONResponse(error.envelope(), status_code=error.status_code, headers=error.headers)
