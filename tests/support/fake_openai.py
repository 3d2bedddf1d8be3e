"""A completions server without a model, for testing clients: every request gets the tokens it asked for.

Owns the smallest part of the OpenAI API that our load clients use. Runs on a thread, on the loopback address.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import orjson


@dataclass
class FakeServer:
    """`requests` collects the completion bodies in order of arrival. `chunk` tokens travel in each event.

    A model named in `short` sends one token too few.
    """

    models: list[dict[str, Any]]
    chunk: int = 1
    short: frozenset[str] = frozenset()
    requests: list[dict[str, Any]] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list)

    def events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        total = body["max_tokens"] - (body["model"] in self.short)
        for start in range(0, total, self.chunk):
            ids = list(range(start, min(start + self.chunk, total)))
            yield {"choices": [{"index": 0, "text": "x" * len(ids), "token_ids": ids}]}
        yield {"choices": [], "usage": {"completion_tokens": total}}


@contextmanager
def running(fake: FakeServer) -> Iterator[str]:
    """Serve `fake` until the block ends; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._json(200, {"data": fake.models})
            else:
                self._json(404, {"error": {"message": self.path}})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/adapters":
                fake.uploads.append(body)
                self._json(201, {})
                return
            request = orjson.loads(body)
            fake.requests.append(request)
            if request["model"] not in {model["id"] for model in fake.models}:
                self._json(404, {"error": {"message": f"no model {request['model']}"}})
                return
            self._stream(request)

        def _json(self, status: int, document: dict[str, Any]) -> None:
            payload = orjson.dumps(document)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def _stream(self, request: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for event in fake.events(request):
                self.wfile.write(b"data: " + orjson.dumps(event) + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
