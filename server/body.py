"""Reading a JSON body as strictly as RFC 8259 allows, before any model sees it.

Owns the request class and the route class that use it. Starlette's own `json()` takes UTF-16, NaN,
repeated keys and lone surrogates; here each is a 400. Knows nothing of what the bodies mean.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from math import isfinite
from typing import Any

from anyio import to_thread
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from server.deps import RequireScope, principal
from server.errors import ApiError, BadRequest, TooLarge

PACE_BYTES = 1024
"""Any line is faster than this in a few seconds."""

MAX_FIELDS = 2048
"""More than any object that is taken may have; each one too many would cost a complaint of its own."""

MAX_BRACKETS = 1 << 15
MAX_VALUES = 3 << 16
MAX_KEYS = 1 << 15
"""In all lists and objects of a body; a prompt of 128k token ids fits, and of strings as much as the body may hold.

The parser is C and lets nobody else run while it makes strings, lists and keys: 4 MiB of them are 0.2 to 0.3 s, so many
are less than 0.1 s.
"""

_INLINE_BYTES = 16 << 10

_SUSPECT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)|NaN|Infinity")
_ODD = re.compile("[\ud800-\udfff\0]")
_PLAIN = re.compile(r"\w{1,64}", re.ASCII)


def parse_json(raw: bytes) -> object:
    """The value of one JSON text. Raises BadRequest, which says where the text is broken but never repeats it."""
    text = _decode(raw)
    check_counts(text)
    try:
        value: object = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_number)
    except json.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error.msg} at character {error.pos}.", code="json_invalid") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.", code="json_invalid") from None
    except ValueError:
        raise BadRequest("A number in the body has too many digits.", code="json_invalid") from None
    if _SUSPECT.search(text):
        _check_leaves(value)
    return value


def check_counts(text: str) -> None:
    """Before anything is parsed. Raises BadRequest for more values, keys or brackets than any body may have."""
    if _are_few(text):  # those within strings too, which is nearly every body
        return
    outside = _outside_strings(text)
    if outside is None or not _are_few(outside):
        raise BadRequest(
            f"The body has more than {MAX_VALUES} values, {MAX_KEYS} keys or {MAX_BRACKETS} opening brackets. "
            "Send text as one string, or fewer prompts at once.",
            code="json_invalid",
        )


def _are_few(text: str) -> bool:
    brackets = text.count("[") + text.count("{")
    return text.count(",") <= MAX_VALUES and text.count(":") <= MAX_KEYS and brackets <= MAX_BRACKETS


def _outside_strings(text: str) -> str | None:
    """What stands between the strings of a JSON text, up to where it is none; None when there are too many strings.

    Each call here takes a few milliseconds at most.
    """
    bare = text.replace("\\\\", "").replace('\\"', "")
    if bare.count('"') > 2 * (MAX_VALUES + MAX_KEYS + MAX_BRACKETS):
        return None
    return "".join(bare.split('"')[::2])


class StrictRequest(Request):
    """A request whose body is bounded, uncompressed, and strict JSON."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            _check_headers(self)
            limits = self.app.state.services.limits
            self._body = await read_bounded(self, limits.max_body_bytes, "--max-body-bytes", limits.idle_s)
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            raw = await self.body()
            # A thread does not make it faster, but the interpreter lets the loop run in between.
            self._json = parse_json(raw) if len(raw) <= _INLINE_BYTES else await to_thread.run_sync(parse_json, raw)
        return self._json


class StrictRoute(APIRoute):
    """A route that reads its body through StrictRequest.

    FastAPI reads bodies before it asks dependencies, so the guards are asked here first: whoever shows no key can
    neither send megabytes nor learn from complaints about them.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        guards = [each.dependency for each in self.dependencies if isinstance(each.dependency, RequireScope)]

        async def strictly(request: Request) -> Response:
            for guard in guards:
                await guard(await principal(request))
            return await handle(StrictRequest(request.scope, request.receive))

        return strictly


async def read_bounded(request: Request, limit: int, flag: str | None, idle_s: float) -> bytes:
    """The whole body. Raises 413 before reading a body declared too large, 408 when the peer stalls."""
    check_declared(request, limit, flag)
    parts, size = [], 0
    chunks = Chunks(request, idle_s)
    while (chunk := await chunks.next()) is not None:
        size += len(chunk)
        if size > limit:
            raise TooLarge(limit, flag)
        parts.append(chunk)
    return b"".join(parts)


class Chunks:
    """The pieces of a body, for as long as they keep coming: `PACE_BYTES` in every `idle_s` seconds, or its end.

    A peer that sends a byte now and then would otherwise hold its connection for ever.
    """

    def __init__(self, request: Request, idle_s: float) -> None:
        self._stream, self._idle_s = request.stream(), idle_s
        self._left, self._since = idle_s, 0

    async def next(self) -> bytes | None:
        """The next piece, None at the end. Raises 408 when the peer is too slow."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._left):
                chunk = await anext(self._stream)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            message = f"Less than {PACE_BYTES} bytes of the body arrived in {self._idle_s:g} seconds."
            raise ApiError(408, message, code="body_timeout", headers={"connection": "close"}) from None
        self._since += len(chunk)
        self._left -= time.monotonic() - began  # what this server does in between is not the peer's fault
        if self._since >= PACE_BYTES:
            self._left, self._since = self._idle_s, 0
        return chunk


def check_declared(request: Request, limit: int, flag: str | None) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise TooLarge(limit, flag)


def check_encoding(request: Request) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        message = "Compressed bodies are not accepted. Send the body without Content-Encoding."
        raise ApiError(415, message, code="unsupported_media")


def _check_headers(request: Request) -> None:
    check_encoding(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = "The body must be JSON. Send it with Content-Type: application/json."
        raise ApiError(415, message, code="unsupported_media")


def _decode(raw: bytes) -> str:
    if raw.startswith(b"\xef\xbb\xbf"):
        raise BadRequest("The body begins with a byte order mark. Send plain UTF-8.", code="json_invalid")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8.", code="json_invalid") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(pairs) > MAX_FIELDS:
        raise BadRequest(f"An object in the body has more than {MAX_FIELDS} fields.", code="json_invalid")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest("An object in the body names the same key twice.", code="json_invalid")
    return found


# Not `int` and `float` themselves: between calls of functions written in Python, other threads run.
def _integer(digits: str) -> int:
    return int(digits)


def _number(digits: str) -> float:
    return float(digits)


def _check_leaves(value: object) -> None:
    """Raises BadRequest for what Python's parser takes and JSON has not, or no text may have; names the field."""
    for name, within in value.items() if isinstance(value, dict) else [("", value)]:
        field = name if _PLAIN.fullmatch(name) else None
        for leaf in _leaves([name, within]):
            if isinstance(leaf, float) and not isfinite(leaf):
                raise BadRequest("JSON has no NaN and no Infinity. Send a finite number.", field, "json_invalid")
            if isinstance(leaf, str) and _ODD.search(leaf):
                message = "A string in the body has a NUL or an unpaired surrogate (\\ud800 to \\udfff)."
                raise BadRequest(message, field, "json_invalid")


def _leaves(value: object) -> Iterator[object]:
    """Every key, and every value that is no list or object."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        else:
            yield item
