"""The load generator: streaming completions, timed token by token, in a closed or an open loop.

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

from bench.api import Api, CompletionRequest, Vllm
from bench.errors import BenchError

TIMEOUT_S = 600.0
SPECIAL_IDS = 256
"""Token ids below this may be special or single bytes; random prompts are drawn above it."""
VLLM = Vllm()


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """The timing of one request: seconds to its first token, and between tokens.

    `tokens` is their number; `ids` are their ids where the server sends them.
    """

    ttft_s: float
    gaps_s: tuple[float, ...]
    tokens: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The timings of some requests. `wall_s` is from the first request sent to the last token received."""

    wall_s: float
    timings: tuple[RequestTiming, ...]

    @property
    def tokens(self) -> int:
        return sum(timing.tokens for timing in self.timings)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens over wall time, prefill included."""
        return self.tokens / self.wall_s


@dataclass(frozen=True, slots=True)
class RequestShape:
    """The size of a request: `prompt_tokens` random ids below `vocab`, and exactly `output_tokens` tokens back."""

    vocab: int
    prompt_tokens: int = 128
    output_tokens: int = 64


def make_requests(models: Sequence[str], shape: RequestShape, seed: int) -> list[CompletionRequest]:
    """One request for each entry of `models`; no two prompts share a prefix worth caching."""
    generator = random.Random(seed)
    return [
        CompletionRequest(model, random_prompt(generator, shape.vocab, shape.prompt_tokens), shape.output_tokens)
        for model in models
    ]


def random_prompt(generator: random.Random, vocab: int, length: int) -> tuple[int, ...]:
    lowest = min(SPECIAL_IDS, vocab // 2)
    return tuple(generator.randrange(lowest, vocab) for _ in range(length))


async def closed_loop(url: str, requests: Sequence[CompletionRequest], concurrency: int, api: Api = VLLM) -> LoadResult:
    """Send `requests` from `concurrency` clients, each of which sends its next one when the last is answered.

    Raises BenchError when an answer is not what was asked for.
    """
    queue = iter(requests)
    async with connected(url, api, concurrency) as client:
        started = time.perf_counter()
        shares = await asyncio.gather(*(_client(client, queue, api) for _ in range(concurrency)))
        wall_s = time.perf_counter() - started
    return LoadResult(wall_s, tuple(timing for share in shares for timing in share))


async def open_loop(
    url: str, requests: Sequence[CompletionRequest], due_s: Sequence[float], api: Api = VLLM
) -> LoadResult:
    """Send each request at its due time, in seconds from now, whether or not earlier ones are answered.

    Raises BenchError as `closed_loop` does.
    """
    async with connected(url, api, len(requests)) as client:
        started = time.perf_counter()

        async def one(request: CompletionRequest, due: float) -> RequestTiming:
            await asyncio.sleep(started + due - time.perf_counter())
            return await complete(client, request, api)

        timings = await asyncio.gather(*(one(request, due) for request, due in zip(requests, due_s, strict=True)))
        return LoadResult(time.perf_counter() - started, tuple(timings))


def connected(url: str, api: Api, connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections)
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, headers=dict(api.headers))


async def _client(client: httpx.AsyncClient, queue: Iterator[CompletionRequest], api: Api) -> list[RequestTiming]:
    """One client: takes the next request from the shared queue until there is none."""
    return [await complete(client, request, api) for request in queue]


def _nothing(tokens: int) -> None:
    pass


async def complete(
    client: httpx.AsyncClient, request: CompletionRequest, api: Api, on_tokens: Callable[[int], None] = _nothing
) -> RequestTiming:
    """Send one completion and time its tokens. A chunk of several tokens spreads its gap over them.

    `on_tokens` is called with the number of tokens in each chunk as it arrives. Raises BenchError for an error status,
    an error event, or a wrong number of tokens.
    """
    started = time.perf_counter()
    arrivals: list[tuple[float, int]] = []
    ids: list[int] = []
    total: int | None = None
    async with client.stream("POST", api.path, json=api.body(request)) as response:
        if response.status_code != httpx.codes.OK:
            detail = (await response.aread()).decode(errors="replace")
            raise BenchError(f"{request.model} answered {response.status_code}: {detail}")
        async for event in _events(response):
            total = api.total(event) or total
            if count := api.tokens(event):
                arrivals.append((time.perf_counter() - started, count))
                ids += api.ids(event)
                on_tokens(count)
    if total and not arrivals:  # all of them ended within a character, so that only the last event counts them
        arrivals.append((time.perf_counter() - started, total))
    tokens = total or sum(count for _, count in arrivals)
    if not arrivals or (api.exact and tokens != request.output_tokens):
        raise BenchError(f"{request.model} sent {tokens} tokens where {request.output_tokens} were asked for.")
    gaps = tuple((now - before) / count for (before, _), (now, count) in pairwise(arrivals) for _ in range(count))
    return RequestTiming(arrivals[0][0], gaps, tokens, tuple(ids))


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events of an answer. Raises BenchError at an error event."""
    async for line in _lines(response):
        if not line.startswith(b"data: ") or line == b"data: [DONE]":
            continue
        event: dict[str, Any] = orjson.loads(line[len(b"data: ") :])
        if "error" in event:
            raise BenchError(f"The stream ended with an error: {event['error']}")
        yield event


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Ended by line feeds. httpx's own lines also end at characters that a model may write."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
