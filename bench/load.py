"""Streaming completions, timed token by token: in a closed loop of clients, or sent when they are due.

Owns the clients and their clocks. Knows the API's dialects and nothing of what answers.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import orjson

from bench.api import Api, Ask, Vllm
from bench.errors import BenchError

TIMEOUT_S = 600.0
SPECIAL_IDS = 256
"""Token ids below this may be special or single bytes; random prompts are drawn above it."""
VLLM = Vllm()


@dataclass(frozen=True, slots=True)
class Trace:
    """One request: seconds to its first token, seconds between tokens, how many tokens came, and which, where the
    server tells that."""

    ttft_s: float
    gaps_s: tuple[float, ...]
    tokens: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """Some requests together: `wall_s` from the first one sent to the last token received."""

    wall_s: float
    traces: tuple[Trace, ...]

    @property
    def tokens(self) -> int:
        return sum(trace.tokens for trace in self.traces)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens over wall time, prefill included."""
        return self.tokens / self.wall_s


@dataclass(frozen=True, slots=True)
class Shape:
    """What each request looks like: random prompt ids below `vocab`, and exactly `output_tokens` tokens back."""

    vocab: int
    prompt_tokens: int = 128
    output_tokens: int = 64


def asks(models: Sequence[str], shape: Shape, seed: int) -> list[Ask]:
    """One request for each entry of `models`; no two prompts share a prefix worth caching."""
    generator = random.Random(seed)
    return [
        Ask(model, random_prompt(generator, shape.vocab, shape.prompt_tokens), shape.output_tokens) for model in models
    ]


def random_prompt(generator: random.Random, vocab: int, length: int) -> tuple[int, ...]:
    lowest = min(SPECIAL_IDS, vocab // 2)
    return tuple(generator.randrange(lowest, vocab) for _ in range(length))


async def closed_loop(url: str, requests: Sequence[Ask], concurrency: int, api: Api = VLLM) -> Run:
    """Send `requests` from `concurrency` clients that start together and each wait for their answer.

    Raises BenchError when an answer is not what was asked for: a wrong answer has no speed.
    """
    queue = iter(requests)
    async with connected(url, api, concurrency) as client:
        started = time.perf_counter()
        shares = await asyncio.gather(*(_client(client, queue, api) for _ in range(concurrency)))
        wall_s = time.perf_counter() - started
    return Run(wall_s, tuple(trace for share in shares for trace in share))


async def open_loop(url: str, requests: Sequence[Ask], due_s: Sequence[float], api: Api = VLLM) -> Run:
    """Send each request when it is due, seconds from now, whatever became of those before it.

    Raises BenchError as `closed_loop` does.
    """
    async with connected(url, api, len(requests)) as client:
        started = time.perf_counter()

        async def one(ask: Ask, due: float) -> Trace:
            await asyncio.sleep(started + due - time.perf_counter())
            return await complete(client, ask, api)

        traces = await asyncio.gather(*(one(ask, due) for ask, due in zip(requests, due_s, strict=True)))
        return Run(time.perf_counter() - started, tuple(traces))


def connected(url: str, api: Api, connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections)
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, headers=dict(api.headers))


async def _client(client: httpx.AsyncClient, queue: Iterator[Ask], api: Api) -> list[Trace]:
    """One client: takes the next request from the shared queue until there is none."""
    return [await complete(client, ask, api) for ask in queue]


def _nothing(tokens: int) -> None:
    pass


async def complete(client: httpx.AsyncClient, ask: Ask, api: Api, on_tokens: Callable[[int], None] = _nothing) -> Trace:
    """Send one completion and time its tokens. A chunk of several tokens spreads its gap over them.

    `on_tokens` is called with how many came, as they come.
    """
    started = time.perf_counter()
    arrivals: list[tuple[float, int]] = []
    ids: list[int] = []
    total: int | None = None
    async with client.stream("POST", api.path, json=api.body(ask)) as response:
        if response.status_code != httpx.codes.OK:
            detail = (await response.aread()).decode(errors="replace")
            raise BenchError(f"{ask.model} answered {response.status_code}: {detail}")
        async for event in _events(response):
            total = api.total(event) or total
            if count := api.tokens(event):
                arrivals.append((time.perf_counter() - started, count))
                ids += api.ids(event)
                on_tokens(count)
    if total and not arrivals:  # all of them ended within a character, and were told with the end
        arrivals.append((time.perf_counter() - started, total))
    tokens = total or sum(count for _, count in arrivals)
    if not arrivals or (api.exact and tokens != ask.output_tokens):
        raise BenchError(f"{ask.model} sent {tokens} tokens where {ask.output_tokens} were asked for.")
    gaps = tuple((now - before) / count for (before, _), (now, count) in pairwise(arrivals) for _ in range(count))
    return Trace(arrivals[0][0], gaps, tokens, tuple(ids))


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events of an answer. Raises BenchError at one that tells an error."""
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event: dict[str, Any] = orjson.loads(line[len("data: ") :])
        if "error" in event:
            raise BenchError(f"The stream ended with an error: {event['error']}")
        yield event
