"""Applications around the real one that keep one promise less each, so that a test of the promise is seen to fail.

Know ASGI and a path's shape, and nothing of the server.
"""

import hashlib
import itertools
import re
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ADAPTERS = "/v1/adapters/"


def _error(message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "no"}}


class _Around:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self.http(scope, receive, send)

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Tired(_Around):
    """Refuses a request, and fails an assertion over the next one."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self._fit = itertools.cycle((True, False))

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/openapi.json":
            await self._app(scope, receive, send)
        else:
            assert next(self._fit), "it is tired"
            await JSONResponse(_error("No."), status_code=400)(scope, receive, send)


class Undead(_Around):
    """Says that it has deleted an adapter, and still answers for it."""

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "DELETE" and scope["path"].startswith(_ADAPTERS):
            name = scope["path"].removeprefix(_ADAPTERS)
            await JSONResponse({"name": name, "object": "adapter", "deleted": True})(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Haunted(_Around):
    """Deletes an adapter, and still lists it as a model."""

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET" and scope["path"].startswith("/v1/models/"):
            await JSONResponse({"object": "model"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Forgetful(_Around):
    """Stores adapters and shows none."""

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET" and scope["path"].startswith(_ADAPTERS):
            await JSONResponse(_error("There is none."), status_code=404)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Swallowing(_Around):
    """Loses the last byte of each piece of an upload, and says that it was all."""

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def less() -> Message:
            message = await receive()
            return {**message, "body": message.get("body", b"")[:-1]}

        if scope["method"] == "PATCH":
            del MutableHeaders(scope=scope)["content-length"]
            await self._app(scope, less, send)
        else:
            await self._app(scope, receive, send)


class Careless(_Around):
    """Takes whatever digest an upload is finished with for the right one."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self._said: dict[str, bytes] = {}

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = bytearray()

        async def heard() -> Message:
            message = await receive()
            sent.extend(message.get("body", b""))
            return message

        id = scope["path"].rpartition("/")[2]
        if scope["method"] == "PUT":
            digest = hashlib.sha256(self._said.get(id, b"")).hexdigest()
            await self._app({**scope, "query_string": f"digest=sha256:{digest}".encode()}, receive, send)
            return
        there = self._said.get(id, b"")
        await self._app(scope, heard, send)
        if scope["method"] == "PATCH" and Headers(scope=scope).get("upload-offset") == str(len(there)):
            self._said[id] = there + bytes(sent)


class Scribbling(_Around):
    """Writes each file of a form where the form says, seen from `folder`, beside taking it as it should."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        super().__init__(app)
        self._folder = folder

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = bytearray()

        async def heard() -> Message:
            message = await receive()
            sent.extend(message.get("body", b""))
            return message

        await self._app(scope, heard, send)
        for name in re.findall(rb'filename="([^"]+)"', sent):
            (self._folder / name.decode()).write_bytes(b"evil")


class Parrot(_Around):
    """Tells in an error what was sent."""

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = bytearray()

        async def heard() -> Message:
            message = await receive()
            sent.extend(message.get("body", b""))
            return message

        async def other(message: Message) -> None:
            if message["type"] == "http.response.body" and message.get("body", b"").startswith(b'{"error"'):
                message["body"] = message["body"].replace(b'"message":"', b'"message":"' + sent.replace(b'"', b"'"))
            elif message["type"] == "http.response.start" and message["status"] >= 400:
                del MutableHeaders(raw=message["headers"])["content-length"]
            await send(message)

        await self._app(scope, heard, other)


class OpenDoor(_Around):
    """Lends everybody without a key, or with a wrong one, the key of `authorization`."""

    def __init__(self, app: ASGIApp, authorization: str) -> None:
        super().__init__(app)
        self._key = authorization

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        MutableHeaders(scope=scope)["authorization"] = self._key
        await self._app(scope, receive, send)


class Undescribed(_Around):
    """Creates with a status that its description does not have."""

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def other(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 201:
                message["status"] = 207
            await send(message)

        await self._app(scope, receive, other)


class Unmannered(_Around):
    """Tells errors in words of its own."""

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def other(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = 400 <= message["status"] < 500
                if refused:
                    length = str(len(b'{"detail": "no"}'))
                    message["headers"] = Headers({"content-type": "application/json", "content-length": length}).raw
            elif refused:
                message["body"] = b'{"detail": "no"}'
            await send(message)

        await self._app(scope, receive, other)
