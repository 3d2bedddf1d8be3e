"""A closed loop of streaming completions, timed token by token.

Owns the clients and their clocks. Knows the OpenAI completions API and nothing of what answers it.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import orjson

TIMEOUT_S = 600.0
SPECIAL_IDS = 256
"""Token ids below this may be special or single bytes; random prompts are drawn above it."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One request: seconds to its first token, seconds between tokens, and how many tokens came."""

    ttft_s: float
    gaps_s: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """One closed loop: `wall_s` from the first request sent to the last token received."""

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


def bodies(models: Sequence[str], shape: Shape, seed: int) -> list[dict[str, Any]]:
    """One greedy streaming completion for each entry of `models`; no two prompts share a prefix worth caching."""
    generator = random.Random(seed)
    lowest = min(SPECIAL_IDS, shape.vocab // 2)
    return [
        {
            "model": model,
            "prompt": [generator.randrange(lowest, shape.vocab) for _ in range(shape.prompt_tokens)],
            "max_tokens": shape.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        for model in models
    ]


async def closed_loop(url: str, requests: Sequence[dict[str, Any]], concurrency: int) -> Run:
    """Send `requests` from `concurrency` clients that start together and each wait for their answer.

    Raises RuntimeError when an answer is not what was asked for: a wrong answer has no speed.
    """
    queue = iter(requests)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
        started = time.perf_counter()
        shares = await asyncio.gather(*(_client(client, queue) for _ in range(concurrency)))
        wall_s = time.perf_counter() - started
    return Run(wall_s, tuple(trace for share in shares for trace in share))


async def _client(client: httpx.AsyncClient, queue: Iterator[dict[str, Any]]) -> list[Trace]:
    """One client: takes the next request from the shared queue until there is none."""
    return [await complete(client, body) for body in queue]


async def complete(client: httpx.AsyncClient, body: dict[str, Any]) -> Trace:
    """Send one completion and time its tokens. A chunk of several tokens spreads its gap over them."""
    started = time.perf_counter()
    arrivals: list[tuple[float, int]] = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            detail = (await response.aread()).decode(errors="replace")
            raise RuntimeError(f"{body['model']} answered {response.status_code}: {detail}")
        async for count in _token_counts(response):
            arrivals.append((time.perf_counter() - started, count))
    tokens = sum(count for _, count in arrivals)
    if tokens != body["max_tokens"]:
        raise RuntimeError(f"{body['model']} sent {tokens} tokens where {body['max_tokens']} were asked for.")
    gaps = tuple((now - before) / count for (before, _), (now, count) in pairwise(arrivals) for _ in range(count))
    return Trace(arrivals[0][0], gaps, tokens)


async def _token_counts(response: httpx.Response) -> AsyncIterator[int]:
    """The number of tokens in each server-sent event that carries any."""
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = orjson.loads(line[len("data: ") :])
        if "error" in event:
            raise RuntimeError(f"The stream ended with an error: {event['error']}")
        if count := sum(len(choice.get("token_ids") or ()) for choice in event["choices"]):
            yield count
