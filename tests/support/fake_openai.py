"""A completions server without a model, for testing clients: every request gets the tokens it asked for.

Owns the smallest part of the OpenAI API that our load clients use. Runs on a thread, on the loopback address.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import orjson


@dataclass
class FakeServer:
    """`requests` collects the completion bodies in order of arrival. `chunk` tokens travel in each event.

    `gap_s` passes after each. A model named in `short` sends one token too few, one in `broken` an error at the end.
    `most_at_once` is how many streams there were at the same time.

    Uploaded adapters are served. `merges` collects the methods that reached a merge route; `metrics` stands at /metrics
    as it is when that is read.
    """

    models: list[dict[str, Any]]
    chunk: int = 1
    gap_s: float = 0.0
    letter: str = "x"
    short: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    requests: list[dict[str, Any]] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    most_at_once: int = 0
    _streams: int = 0
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """One more stream until the block ends."""
        with self._lock:
            self._streams += 1
            self.most_at_once = max(self.most_at_once, self._streams)
        try:
            yield
        finally:
            with self._lock:
                self._streams -= 1

    def upload(self, body: bytes) -> None:
        """Remember a form, and serve an adapter of the name that it gives."""
        self.uploads.append(body)
        name = re.search(rb'name="name"\r\n\r\n([^\r]+)', body)
        assert name, "an upload names its adapter"
        self.models.append({"id": name[1].decode(), "parent": "base"})

    def events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        total = body["max_tokens"] - (body["model"] in self.short)
        for start in range(0, total, self.chunk):
            ids = list(range(start, min(start + self.chunk, total)))
            yield {"choices": [{"index": 0, "text": self.letter * len(ids), "token_ids": ids}]}
            time.sleep(self.gap_s)
        if body["model"] in self.broken:
            yield {"error": {"message": "the engine has failed"}}
        yield {"choices": [], "usage": {"completion_tokens": total}}


class Handler(BaseHTTPRequestHandler):
    """Answers for `fake`, which a class of its own for each server holds."""

    fake: FakeServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._json(200, {"data": self.fake.models})
        elif self.path == "/metrics":
            self._text("".join(f"{name} {value}\n" for name, value in self.fake.metrics.items()))
        else:
            self._json(404, {"error": {"message": self.path}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/adapters":
            self.fake.upload(body)
            self._json(201, {})
            return
        if self.path.endswith("/merge"):
            self._merge()
            return
        request = orjson.loads(body)
        self.fake.requests.append(request)
        if request["model"] not in {model["id"] for model in self.fake.models}:
            self._json(404, {"error": {"message": f"no model {request['model']}"}})
            return
        self._stream(request)

    def do_DELETE(self) -> None:
        self._merge()

    def _merge(self) -> None:
        self.fake.merges.append(self.command)
        self._json(200, {})

    def _json(self, status: int, document: dict[str, Any]) -> None:
        self._send(status, "application/json", orjson.dumps(document))

    def _text(self, text: str) -> None:
        self._send(200, "text/plain", text.encode())

    def _send(self, status: int, kind: str, payload: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _stream(self, request: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        with self.fake.counted():
            for event in self.fake.events(request):
                self.wfile.write(b"data: " + orjson.dumps(event) + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def running(fake: FakeServer) -> Iterator[str]:
    """Serve `fake` until the block ends; gives its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake}))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
