"""Server-sent events (WHATWG HTML, section 9.2) with the rules of a token stream.

Owns the response that ends in `data: [DONE]`, or in an error event and no `[DONE]`, and that stops its
source as soon as the client hangs up. One that stops reading is cut off by `connections.py`. Knows nothing of what the
events mean.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import orjson
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.disconnect import disconnected
from server.errors import api_error, internal

_log = structlog.get_logger(__name__)
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(Response):
    """One event a chunk. `close` ends their source."""

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[Mapping[str, Any], None],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
    ) -> None:
        self._chunks, self._close = chunks, close
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, **headers})

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        super().init_headers(headers)
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send_all(send))
        hangup = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({sending, hangup}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, hangup):
                task.cancel()
            await asyncio.gather(sending, hangup, return_exceptions=True)
            await self._chunks.aclose()
            await self._close()  # a generator that was never started has no end to run

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events():
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self._chunks:
                yield _event(chunk)
        except Exception as error:
            known = api_error(error)
            if known is None or known.status_code >= 500:
                _log.exception("stream_failed")
            else:
                _log.warning("stream_cut", reason=known.code)
            yield _event((known or internal()).envelope())
            return
        yield b"data: [DONE]\n\n"


_LINE_ENDS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))


def _event(content: Mapping[str, Any]) -> bytes:
    """An event of one line. Readers of lines, httpx's among them, end one at more characters than the format does."""
    data = orjson.dumps(content)
    for character, escaped in _LINE_ENDS:
        data = data.replace(character, escaped)
    return b"data: " + data + b"\n\n"
