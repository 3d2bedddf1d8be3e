"""Streams on a real socket: their shape, their failures, and clients that hang up."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.sequence import Request, SamplingParams
from server.connections import Bounds
from server.generation import Generation
from server.ports import Limits
from server.stream import EventStream
from tests.support.engine import FakeStream, FakeWorker
from tests.support.http import LiveServer, eventually, serve
from tests.support.reply_checks import check_after
from tests.support.server_rig import BASE, ServerRig, form, make_rig

COMPLETION = {"model": BASE, "prompt": "Once", "max_tokens": 12}
CHAT = {"model": BASE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12}
BOTH = [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)]


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[ServerRig, LiveServer]]:
    """A server whose tokens take 20 ms each."""
    rig = make_rig(tmp_path, FakeWorker(delay_s=0.02, max_model_len=100_000))
    with serve(rig.app) as live, live.client() as client:
        yield rig, live
        check_after(client, rig)
    rig.registry.close()


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def test_an_event_is_one_line_whatever_ends_a_line() -> None:
    """str.splitlines, as httpx's iter_lines, ends lines at more characters than server-sent events do."""
    text = "".join(map(chr, range(0x300))) + "\u2028 \\\u2028 \u2029 \N{GRINNING FACE}"
    assert len(text.splitlines()) > 10
    sent: list[bytes] = []

    async def chunks() -> AsyncGenerator[dict[str, str], None]:
        yield {"text": text}

    async def close() -> None:
        pass

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Message:
        await asyncio.sleep(10)
        raise AssertionError("the answer ends before that")

    asyncio.run(EventStream(chunks(), close, {})({"type": "http"}, receive, send))
    lines = b"".join(sent).decode().splitlines()
    assert lines[1:] == ["", "data: [DONE]", ""]
    assert json.loads(lines[0].removeprefix("data: ")) == {"text": text}


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize("options", [{}, {"n": 3, "seed": 4}, {"logprobs": True}, {"return_token_ids": True}])
def test_a_whole_answer_is_the_folded_stream(
    path: str, body: dict[str, object], options: dict[str, object], http: httpx.Client
) -> None:
    if path == "/v1/completions" and "logprobs" in options:
        options = {"logprobs": 2, "echo": True}
    whole = http.post(path, json=body | options).json()
    streamed = events(http.post(path, json=body | options | {"stream": True}).text)
    assert streamed[-1] == "[DONE]"
    chunks = [json.loads(event) for event in streamed[:-1]]
    for choice in whole["choices"]:
        pieces = [piece for chunk in chunks for piece in chunk["choices"] if piece["index"] == choice["index"]]
        assert _text(pieces) == (choice["text"] if "text" in choice else choice["message"]["content"])
        assert [p["finish_reason"] for p in pieces if p["finish_reason"]] == [choice["finish_reason"]]
        if "token_ids" in choice:
            assert [id for piece in pieces for id in piece.get("token_ids") or []] == choice["token_ids"]
        if choice["logprobs"]:
            for name in choice["logprobs"]:
                if name != "refusal":
                    blocks = [piece["logprobs"][name] for piece in pieces if piece["logprobs"]]
                    assert [item for block in blocks for item in block] == choice["logprobs"][name]


def _text(pieces: list[dict[str, object]]) -> str:
    parts = [piece.get("text") or (piece.get("delta") or {}).get("content", "") for piece in pieces]  # type: ignore[attr-defined]
    return "".join(str(part) for part in parts)


def test_stream_headers(http: httpx.Client) -> None:
    reply = http.post("/v1/completions", json=COMPLETION | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-rootstock-tier"] == "base"
    assert reply.headers["x-rootstock-cached-tokens"] == "2"
    assert "content-length" not in reply.headers


@pytest.mark.parametrize(("path", "body"), BOTH)
def test_f66_a_failure_in_mid_stream_is_an_error_event_without_done(
    path: str, body: dict[str, object], tmp_path: Path
) -> None:
    rig = make_rig(tmp_path, FakeWorker(fail_after=3))
    with serve(rig.app) as live, live.client() as client:
        streamed = events(client.post(path, json=body | {"stream": True}).text)
        whole = client.post(path, json=body)
        check_after(client, rig)
    rig.registry.close()
    assert json.loads(streamed[-1])["error"]["code"] == "non_finite_logits"
    assert "[DONE]" not in streamed
    assert whole.status_code == 500
    assert whole.json()["error"]["code"] == "non_finite_logits"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_f61_a_client_that_hangs_up_aborts_its_requests(
    stream: bool, n: int, slow: tuple[ServerRig, LiveServer]
) -> None:
    rig, live = slow
    body = json.dumps(COMPLETION | {"max_tokens": 5000, "stream": stream, "n": n}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    port = int(live.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        eventually(lambda: len(rig.worker.running) == n)
        time.sleep(0.1)
    began = time.monotonic()
    eventually(lambda: not rig.worker.running)
    assert time.monotonic() - began < 1
    assert len(rig.worker.aborted) == n
    eventually(lambda: rig.services.lifecycle.in_flight == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_f61_a_hangup_ends_a_request_that_others_wait_behind(stream: bool, slow: tuple[ServerRig, LiveServer]) -> None:
    rig, live = slow
    body = json.dumps(COMPLETION | {"max_tokens": 5000, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", int(live.url.rsplit(":", 1)[1]))) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: rig.worker.running)
    eventually(lambda: not rig.worker.running)
    assert len(rig.worker.aborted) == 1


class Hesitant(FakeWorker):
    """Takes one request, and lets all others wait."""

    async def submit(self, request: Request) -> FakeStream:
        if self.running:
            await asyncio.Event().wait()
        return await super().submit(request)


@pytest.mark.anyio
@pytest.mark.parametrize("n", [1, 3])
async def test_f61_a_hangup_while_choices_are_accepted_leaves_none_of_them(n: int) -> None:
    """However few were accepted, and even if all were and nobody has heard of it yet."""
    worker = Hesitant()
    requests = [Request(f"{number}", (1, 2, 3), SamplingParams(max_tokens=9)) for number in range(n)]
    starting = asyncio.create_task(Generation.start(worker, requests))
    while not worker.running:
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled() and worker.aborted == ["0"] and not worker.running


def test_f61_a_hangup_gives_the_adapter_back(slow: tuple[ServerRig, LiveServer]) -> None:
    rig, live = slow
    with live.client() as client:
        client.post("/v1/adapters", data={"name": "gone"}, files=form(3)).raise_for_status()
        body = COMPLETION | {"model": "gone", "max_tokens": 5000, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            assert client.delete("/v1/adapters/gone").status_code == 202
            assert client.post("/v1/completions", json=body).status_code == 404
            store = rig.catalog._store
            assert list(store.ids()), "the running request still holds the bytes"
        eventually(lambda: not rig.worker.running)
        eventually(lambda: not list(store.ids()))


class Watched:
    """Shows `see` each part of an answer before it is sent."""

    def __init__(self, app: ASGIApp, see: Callable[[str], None]) -> None:
        self._app, self._see = app, see

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def seen(message: Message) -> None:
            self._see(message.get("body", b"").decode())
            await send(message)

        await self._app(scope, receive, seen)


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize("n", [1, 3])
def test_an_adapter_is_let_go_before_its_last_finish_reason_is_told(
    path: str, body: dict[str, object], n: int, tmp_path: Path
) -> None:
    """So that a delete right after it never finds the adapter in use."""
    rig = make_rig(tmp_path)
    held: list[tuple[str, bool]] = []
    rig.app.add_middleware(
        Watched, see=lambda text: held.extend((event, bool(rig.catalog.leases._leased)) for event in events(text))
    )
    with serve(rig.app) as live, live.client() as client:
        client.post("/v1/adapters", data={"name": "brief"}, files=form(3)).raise_for_status()
        client.post(path, json=body | {"model": "brief", "n": n, "stream": True}).raise_for_status()
    rig.registry.close()
    assert held[0][1]
    assert [leased for event, leased in held if '"finish_reason":"length"' in event] == [True] * (n - 1) + [False]


def test_f62_a_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, FakeWorker(max_model_len=10_000_000), Limits(10_000_000))
    with serve(rig.app, Bounds(read_s=0.5)) as live:
        body = json.dumps(COMPLETION | {"max_tokens": 1_000_000, "stream": True}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        port = int(live.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
            eventually(lambda: bool(rig.worker.aborted), within_s=30)
            eventually(lambda: not live.connections)  # it holds no file and no place of others
        (taken,) = rig.worker.handed.values()
        assert taken < 8_000, "an event is made when the one before it has gone: what waits is what sockets hold"
        with live.client() as client:
            check_after(client, rig)
    rig.registry.close()
    assert not rig.worker.running


def test_a_full_queue_is_429_and_nothing_stays_behind(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, FakeWorker(room=2))
    with serve(rig.app) as live, live.client() as client:
        reply = client.post("/v1/completions", json=COMPLETION | {"n": 3})
        assert reply.status_code == 429
        assert reply.headers["retry-after"] == "1"
        assert reply.json()["error"]["code"] == "queue_full"
        assert not rig.worker.running
        assert client.post("/v1/completions", json=COMPLETION | {"n": 2}).status_code == 200
    rig.registry.close()


def test_f64_a_stalled_body_is_408(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, limits=Limits(4096, idle_s=0.2))
    with serve(rig.app) as live:
        port = int(live.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9"
            connection.sendall(head.encode() + b"\r\n\r\n{")
            connection.settimeout(5)
            assert b" 408 " in connection.recv(4096)
        with live.client() as client:
            check_after(client, rig)
    rig.registry.close()


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Content-Length: -1",
    ],
)
def test_f65_conflicting_lengths_are_400_and_what_follows_is_not_a_request(
    lengths: str, live: LiveServer, http: httpx.Client, rig: ServerRig
) -> None:
    hidden = "0\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{lengths}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(live.url.rsplit(":", 1)[1]))) as connection:
        connection.settimeout(20)
        connection.sendall((head + hidden).encode())
        answered = b""
        while piece := connection.recv(65536):
            answered += piece
    assert answered.startswith(b"HTTP/1.1 400") and answered.count(b"HTTP/1.1") == 1
    assert b'"code":"http_invalid"' in answered
    assert b"alive" not in answered
    check_after(http, rig)
