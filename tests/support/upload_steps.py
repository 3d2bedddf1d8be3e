"""An upload, step by step: a form's parts, pieces of an upload, and bytes on a socket.

Knows the routes and nothing of what is answered; the tests judge.
"""

import contextlib
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.support.http import LiveServer

UPLOADS = "/v1/adapters/uploads"
Parts = dict[str, Any]


def parts(folder: Path) -> Parts:
    """The two files of a directory, for httpx."""
    return {"config": ("adapter_config.json", config_of(folder)), "weights": ("w.safetensors", weights_of(folder))}


def config_of(folder: Path) -> bytes:
    return (folder / "adapter_config.json").read_bytes()


def weights_of(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def begin(http: httpx.Client, config: bytes, weights: bytes, **more: Any) -> str:
    order = {"name": "hostile", "config": config.decode(), "size": len(weights)} | more
    reply = http.post(UPLOADS, json=order)
    assert reply.status_code == 201, reply.text
    at: str = reply.headers["location"]
    return at


def offset(http: httpx.Client, at: str) -> int:
    return int(http.head(at).headers["upload-offset"])


def rest(http: httpx.Client, at: str, weights: bytes) -> httpx.Response:
    """All that is not there yet."""
    there = offset(http, at)
    return http.patch(at, content=weights[there:], headers={"upload-offset": str(there)})


def finish(http: httpx.Client, at: str, weights: bytes, **headers: str) -> httpx.Response:
    return http.put(at, params={"digest": sha256(weights)}, headers=headers)


def in_pieces(http: httpx.Client, config: bytes, weights: bytes, name: str = "hostile") -> httpx.Response:
    """What becomes of an upload that arrives in two."""
    at, half = begin(http, config, weights, name=name), len(weights) // 2
    http.patch(at, content=weights[:half], headers={"upload-offset": "0"})
    assert rest(http, at, weights).status_code == 202
    return finish(http, at, weights)


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


@contextlib.contextmanager
def connected(live: LiveServer) -> Iterator[socket.socket]:
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        yield client


def read_reply(client: socket.socket) -> httpx.Response:
    """One answer, which says how long it is."""
    content = b""
    while b"\r\n\r\n" not in content:
        content += receive(client)
    head, _, body = content.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    headers = httpx.Headers([(name, value) for name, _, value in (line.partition(": ") for line in lines)])
    while len(body) < int(headers["content-length"]):
        body += receive(client)
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


def receive(client: socket.socket) -> bytes:
    chunk = client.recv(65536)
    assert chunk, "the server has closed the connection"
    return chunk
