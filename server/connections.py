"""Connections around their requests: how many there may be, how large a request's head, how slowly it may come, how far
ahead of the answers, and how slowly these may be read.

Owns uvicorn's HTTP/1.1 protocol with those bounds, and the refusals that no application gets to see. When there are too
many connections, one that is idle goes first; probes are answered even when all are busy. Knows no routes but those.
"""

import resource
from asyncio import TimerHandle, Transport
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar

import orjson
import structlog
from httptools import HttpParserError
from starlette.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.errors import ApiError, BadRequest
from server.slow_clients import StallTimer

_log = structlog.get_logger(__name__)
PROBES = frozenset({b"/livez", b"/readyz", b"/health"})
RESERVE = 32
"""Connections beyond the bound that are still read, so that a probe gets through when all others are busy."""

OTHER_FILES = 192
"""Files that are no connections: databases, adapters that are read, uploads."""

AHEAD = 32
"""Requests that may wait on one connection for the answers before theirs; each takes kilobytes."""

_A_FEW = 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """`connections` at once; a head, which is a request's first line and its headers, has `head_bytes` and `head_s`;
    `read_s` is how long a client may leave its answer unread.

    Whatever else is no body, such as trailers, may have `head_bytes` too.
    """

    connections: int = 2048
    head_bytes: int = 32 << 10
    head_s: float = 30.0
    read_s: float = 30.0


def bounded(bounds: Bounds) -> type[HttpToolsProtocol]:
    """One server's protocol with these bounds, as the class that uvicorn asks for."""
    return type("BoundedProtocol", (_Bounded,), {"bounds": bounds, "open_connections": _Connections()})


def raise_file_limit() -> None:
    """A connection is a file: take as many as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def affordable(wanted: int) -> int:
    """As many of the `wanted` connections as this process has files for, but always a few.

    With more than that the bound would never be reached: idle ones would hold the last files, and nobody else get in.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(_A_FEW, min(wanted, files - RESERVE - OTHER_FILES))


class _Connections:
    """The open connections, and which of them are idle, the longest idle first. Every method takes the
    same few steps, however many there are: they are called when everybody connects at once.
    """

    def __init__(self) -> None:
        self._open: set[_Bounded] = set()
        self._idle: OrderedDict[_Bounded, None] = OrderedDict()  # a dict would search for its first key

    def __len__(self) -> int:
        return len(self._open)

    def add(self, one: "_Bounded") -> None:
        self._open.add(one)
        self.mark_idle(one)

    def mark_busy(self, one: "_Bounded") -> None:
        self._idle.pop(one, None)

    def mark_idle(self, one: "_Bounded") -> None:
        self._idle[one] = None
        self._idle.move_to_end(one)

    def discard(self, one: "_Bounded") -> None:
        """It is closed, or about to be. Idempotent."""
        self._open.discard(one)
        self._idle.pop(one, None)

    def longest_idle(self, but: "_Bounded") -> "_Bounded | None":
        """Those met on the way that are closing already are counted no longer."""
        while (one := next((each for each in self._idle if each is not but), None)) is not None:
            if not one.transport.is_closing():
                return one
            self.discard(one)
        return None


class _Bounded(HttpToolsProtocol):
    bounds: ClassVar[Bounds]
    open_connections: ClassVar[_Connections]

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._bare_bytes = 0  # what came since the latest piece of a body, the end of a head, or that of a request
        self._head_timer: TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None
        self._stall_timer = StallTimer(self.loop, transport, self.bounds.read_s, self._cut)
        self.open_connections.add(self)
        self._expect_head()
        if self._has_too_many():
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stall_timer.stop()
        self.open_connections.discard(self)
        super().connection_lost(exc)
        if self._answering is not None:  # uvicorn tells the latest that came, which may wait behind this one
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._bare_bytes += len(data)
        super().data_received(data)
        if self._bare_bytes > self.bounds.head_bytes:
            self.refuse(_head_too_large(self.bounds.head_bytes))
        elif self._idle and self._head_timer is None:  # it belongs to no request, or to one that is answered already
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer.watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._idle:  # the answer goes on, at the client's pace
            self._stall_timer.stop()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self.flow.write_paused:
            self._stall_timer.stop()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        self._bare_bytes = 0  # how large it is now that it is whole, `_refusal` says
        if len(self.pipeline) >= AHEAD:
            raise HttpParserError("too many requests wait for the answers before theirs")
        self.open_connections.mark_busy(self)
        refusal = self._refusal()
        self.app = self.config.loaded_app if refusal is None else _answer(refusal)
        super().on_headers_complete()
        if not self.pipeline:
            self._answering = self.cycle

    def on_body(self, body: bytes) -> None:
        self._bare_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._bare_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._answering = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self._stall_timer.watch()
        if self._idle and not self.transport.is_closing():
            self.open_connections.mark_idle(self)

    def send_400_response(self, msg: str) -> None:
        self.refuse(BadRequest("This is no well-formed request, or it contradicts itself.", code="http_invalid"))

    def refuse(self, error: ApiError) -> None:
        """Say so and close. In the middle of an answer there is nothing left to say."""
        self._stop_head_timer()
        self.open_connections.discard(self)
        if self._idle and not self.transport.is_closing():
            self.transport.write(_raw(error))
        self.transport.close()
        self._stall_timer.watch()

    def _cut(self) -> None:
        """To close would wait for ever until the rest is read; the application sees a client that has hung up."""
        state = self.cycle.scope["state"] if self.cycle is not None else {}  # type: ignore[redundant-expr]  # as above
        _log.warning("client_cut", reason="it stopped reading", request_id=state.get("request_id"))
        self.transport.abort()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]  # uvicorn omits the None

    def _make_room(self) -> None:
        longest_idle = self.open_connections.longest_idle(but=self)
        if longest_idle is not None:
            longest_idle.refuse(_too_many_connections())
        elif len(self.open_connections) > self.bounds.connections + RESERVE:
            self.refuse(_too_many_connections())

    def _has_too_many(self) -> bool:
        return len(self.open_connections) > self.bounds.connections

    def _refusal(self) -> ApiError | None:
        """Why this request is not for the application, now that its head is known."""
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > self.bounds.head_bytes:
            return _head_too_large(self.bounds.head_bytes)
        if self.url.partition(b"?")[0] not in PROBES and self._has_too_many():
            return _too_many_connections()
        return None

    def _expect_head(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(self.bounds.head_s, self._head_late)

    def _head_late(self) -> None:
        message = f"The request's headers did not arrive within {self.bounds.head_s:g} seconds."
        self.refuse(ApiError(408, message, code="head_timeout"))

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _head_too_large(limit: int) -> ApiError:
    return ApiError(
        431,
        f"The request's line and headers, or what comes beside its body, take more than {limit} bytes.",
        code="head_too_large",
    )


def _too_many_connections() -> ApiError:
    return ApiError(
        503,
        "The server has as many connections as it takes. Close idle ones, or try again.",
        type="server_error",
        code="too_many_connections",
        headers={"retry-after": "1"},
    )


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.envelope(), error.status_code, {**(error.headers or {}), "connection": "close"})


def _raw(error: ApiError) -> bytes:
    body = orjson.dumps(error.envelope())
    fields = {**(error.headers or {}), "content-type": "application/json", "content-length": str(len(body))}
    lines = [f"HTTP/1.1 {error.status_code} {HTTPStatus(error.status_code).phrase}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body
