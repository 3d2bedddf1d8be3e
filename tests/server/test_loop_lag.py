"""E55: the event loop goes on while hostile bodies are parsed.

The lag is counted in processor time of this process between two ticks, so that a busy machine does not spoil it. What
the C parser does in one go cannot be interrupted: its own time on the worst body is the allowance.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.face import BASE, Face, make_face

LIMIT_S = 0.1
SIZE = (4 << 20) - 200
HEAD = f'{{"model":"{BASE}",'.encode()


def filled(begin: bytes, item: bytes, end: bytes) -> bytes:
    """A body of almost the largest size: `item` again and again."""
    return HEAD + begin + b",".join([item] * (SIZE // (len(item) + 1) - len(begin))) + end


HOSTILE = {
    "ids": ("completions", filled(b'"prompt":[', b"1", b"]}")),
    "lists of ids": ("completions", filled(b'"prompt":[', b"[1]", b"]}")),
    "unknown fields": ("completions", HEAD + b",".join(b'"u%d":1' % number for number in range(300_000)) + b"}"),
    "messages": ("chat/completions", filled(b'"messages":[', b'{"role":"user","content":"x"}', b"]}")),
    "parts": (
        "chat/completions",
        filled(b'"messages":[{"role":"user","content":[', b'{"type":"text","text":"x"}', b"]}]}"),
    ),
}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Face]:
    face = make_face(tmp_path)
    yield face
    face.registry.close()


class Ticker:
    """Ticks every millisecond; `longest_s` is the most processor time that passed between two ticks."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def tick(self) -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.process_time()
            self.longest_s, last = max(self.longest_s, now - last), now


@contextmanager
def ticking() -> Iterator[Ticker]:
    ticker = Ticker()
    task = asyncio.create_task(ticker.tick())
    try:
        yield ticker
    finally:
        task.cancel()


def uninterruptible_s() -> float:
    """What the parser takes for one object with all the fields that fit, on this machine at this moment."""
    began = time.process_time()
    json.loads(HOSTILE["unknown fields"][1], object_pairs_hook=len)
    return time.process_time() - began


@pytest.mark.anyio
@pytest.mark.parametrize("name", HOSTILE)
async def test_e55_the_loop_goes_on_under_hostile_json(name: str, made: Face) -> None:
    path, content = HOSTILE[name]
    transport = httpx.ASGITransport(made.app)
    lags = []
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for _ in range(3):
            with ticking() as ticker:
                reply = await client.post(f"/v1/{path}", content=content, headers={"content-type": "application/json"})
                await asyncio.sleep(0.01)
            assert reply.status_code == 400, reply.text
            lags.append(ticker.longest_s)
            if lags[-1] < LIMIT_S + uninterruptible_s():
                return
    raise AssertionError(f"the loop stood still for {lags} seconds of processor time")
