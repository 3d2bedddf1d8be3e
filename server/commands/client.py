"""Talking to a running server from the command line.

Owns the connection and the translation of refusals into errors a person can act on. Knows HTTP and the
error envelope; prints nothing.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from server.commands.errors import CommandFailed, Refused, Unreachable

_PATIENT = httpx.Timeout(10.0, read=600.0, write=600.0)


class Client:
    """One server by its URL, called with `key` where it asks for one."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        """The reply's JSON. Raises CommandFailed with the server's own message, Unreachable when there is no reply."""
        with self._client() as client:
            return _content(client.request(method, path, json=body))

    def make(self, method: str, path: str, body: Mapping[str, object]) -> tuple[Any, bool]:
        """The reply's JSON, and whether something was made; raises as `call` does."""
        with self._client() as client:
            reply = client.request(method, path, json=body)
            return _content(reply), reply.status_code == 201

    def put(self, path: str, content: bytes) -> Any:
        """The reply's JSON to a body of plain bytes. Raises as `call` does."""
        with self._client() as client:
            return _content(client.put(path, content=content))

    def send(self, path: str, pieces: Iterator[bytes], headers: Mapping[str, str]) -> Any:
        """PATCH bytes as they are read. The reply's JSON; raises as `call` does."""
        with self._client() as client:
            return _content(client.patch(path, content=pieces, headers=dict(headers)))

    def finish(self, path: str) -> tuple[Any, bool]:
        """PUT without a body. The reply's JSON, and whether something was made; raises as `call` does."""
        with self._client() as client:
            reply = client.put(path)
            return _content(reply), reply.status_code == 201

    def stream(self, path: str, body: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer, up to `[DONE]`. Raises CommandFailed on an error event."""
        with self._client() as client, client.stream("POST", path, json=body) as reply:
            if reply.is_error:
                reply.read()
                _content(reply)
            for line in reply.iter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    _raise_error(event)
                    yield event

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        try:
            with httpx.Client(base_url=self._url, headers=self._headers, timeout=_PATIENT) as client:
                yield client
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):  # no later attempt would fare better
                raise CommandFailed(
                    f"The certificate of {self._url} is not trusted. If it is your own, name its file in SSL_CERT_FILE."
                ) from None
            raise Unreachable(
                f"No server answers at {self._url}. Start one with `rootstock serve`, or give --url."
            ) from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise CommandFailed(f"{self._url} is not a URL. Write it as http://127.0.0.1:8000.") from None
        except httpx.HTTPError as error:
            raise Unreachable(f"The connection to {self._url} failed: {type(error).__name__}.") from error


def _content(reply: httpx.Response) -> Any:
    try:
        content = reply.json()
    except ValueError:
        # A proxy's own page, mostly; its status alone tells whether to come again.
        message = f"{reply.url} answered {reply.status_code} without JSON. Is a Rootstock server there, and is it up?"
        raise Refused(message, reply.status_code, None) from None
    _raise_error(content, reply.status_code)
    return content


def _raise_error(content: Any, status: int = 200) -> None:
    error = content.get("error") if isinstance(content, dict) else None
    if error is not None:
        raise Refused(str(error.get("message", "The server refused.")), status, error.get("code"))
