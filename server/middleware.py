"""What happens around every request: its id, its line in the log, its count, and the last resort for our bugs.

Pure ASGI, so that streams pass untouched. Logs no bodies, no prompts and no query strings.
"""

import asyncio
import time
import uuid

import orjson
import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ClientGone, internal
from server.metrics import Metrics
from server.ports import Traces

_log = structlog.get_logger(__name__)


class RequestLog:
    """Gives each request an id of our own making: a client's `x-request-id` is never used as a key."""

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces | None = None) -> None:
        self._app, self._metrics, self._traces = app, metrics, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(send, request_id)
        began = time.monotonic()
        structlog.contextvars.clear_contextvars()  # a pipelined request begins in the context of the one before
        traces = None if scope["path"] in _QUIET else self._traces
        trace = {"trace_id": traces.begin(request_id, Headers(scope=scope))} if traces else {}
        with structlog.contextvars.bound_contextvars(request_id=request_id, **trace):
            try:
                await self._app(scope, receive, exchange.send)
            except (ClientGone, asyncio.CancelledError):  # requests are cancelled by the server's own end alone
                exchange.status = exchange.status or 499
            except Exception:
                _log.exception("request_failed")
                self._metrics.error(internal().code)
                await exchange.fail()
            finally:
                if traces:
                    traces.end(request_id, scope["method"], _route(scope), exchange.status or 499)
            self._note(scope, exchange.status or 499, time.monotonic() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        self._metrics.http(route, scope["method"] if route != _UNMATCHED else "any", status)
        level = _log.debug if route in _QUIET else _log.info
        level("request", method=scope["method"], route=route, status=status, seconds=round(seconds, 4))


def _route(scope: Scope) -> str:
    """The route's template, never what was asked for: that could be anything."""
    path: str = getattr(scope.get("route"), "path", _UNMATCHED)
    return path


_UNMATCHED = "unmatched"
_QUIET = frozenset({"/livez", "/readyz", "/health", "/metrics"})


class _Exchange:
    """One response on its way out."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode())]
        await self._send(message)

    async def fail(self) -> None:
        """A 500 in OpenAI's shape, unless the response has begun: then the connection is cut."""
        if self.status is not None:
            return
        headers = [(b"content-type", b"application/json")]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self._send({"type": "http.response.body", "body": orjson.dumps(internal().envelope())})
