"""The order of measurements: each round measures all traffic on all targets, since a machine's speed drifts.

Owns that order and the record of each measurement. Knows what a target must answer, not what it is.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import httpx
import numpy as np

from bench import memory
from bench.api import Api, CompletionRequest
from bench.arrivals import Arrivals, ClosedLoop, Replay, Span
from bench.errors import BenchError
from bench.load import VLLM, LoadResult, closed_loop, open_loop, random_prompt
from bench.workload import Mix, assign

WARM_UP_OUTPUT = Span(2, 2)
"""Output tokens while warming up. Short, since it is prompts and adapters that need a first time."""
BASE = "base"
"""The name of traffic without adapters, the denominator of all ratios."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of traffic. Requests draw their adapter from `models` by `mix`; without `models` they ask the base.

    `requests` is their number. `rank` only labels the adapters.
    """

    traffic: str
    arrivals: Arrivals
    requests: int
    prompt: Span = Span(128, 128)
    output: Span = Span(64, 64)
    models: tuple[str, ...] = ()
    mix: Mix | None = None
    rank: int = 0

    def make_requests(self, base_id: str, vocab: int, seed: int) -> list[CompletionRequest]:
        """The requests of one measurement. The same seed makes the same ones; no two prompts are equal."""
        generator = random.Random(seed)
        return [
            CompletionRequest(model, random_prompt(generator, vocab, prompt), output)
            for model, (prompt, output) in zip(self._drawn(base_id, seed), self._lengths(generator), strict=True)
        ]

    def _drawn(self, base_id: str, seed: int) -> list[str]:
        if not self.models:
            return [base_id] * self.requests
        assert self.mix is not None
        drawn = assign(self.mix.popularity, self.requests, len(self.models), seed, self.mix.exponent)
        return [self.models[index] for index in drawn]

    def _lengths(self, generator: random.Random) -> list[tuple[int, int]]:
        if isinstance(self.arrivals, Replay):
            return [(line.prompt_tokens, line.output_tokens) for line in self.arrivals.lines]
        return [(self.prompt.draw(generator), self.output.draw(generator)) for _ in range(self.requests)]


class Target(Protocol):
    """What is measured: a server, or a library in a process of its own. `pid` is the root of its process tree."""

    @property
    def name(self) -> str: ...
    @property
    def base_id(self) -> str: ...
    @property
    def adapters(self) -> frozenset[str]: ...
    @property
    def pid(self) -> int | None: ...

    def run(self, requests: Sequence[CompletionRequest], arrivals: Arrivals, seed: int) -> LoadResult:
        """Answer all requests. Raises BenchError or httpx.HTTPError where one is not answered as asked."""
        ...


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A server at `url` that speaks `api`, with the adapters that it has."""

    name: str
    url: str
    base_id: str
    adapters: frozenset[str]
    api: Api = VLLM
    pid: int | None = None

    def run(self, requests: Sequence[CompletionRequest], arrivals: Arrivals, seed: int) -> LoadResult:
        match arrivals:
            case ClosedLoop():
                return asyncio.run(closed_loop(self.url, requests, arrivals.clients, self.api))
            case Replay():
                due = [line.at_s for line in arrivals.lines]
            case _:
                due = arrivals.due_s(len(requests), seed)
        return asyncio.run(open_loop(self.url, requests, due, self.api))


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement. Latencies are milliseconds; `load` is the machine's load average when it ended."""

    server: str
    traffic: str
    round: int
    adapters: int
    rank: int
    mix: str
    arrivals: str
    requests: int
    prompt_tokens: str
    output_tokens: str
    tokens_per_s: float
    wall_s: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p95_ms: float
    itl_p99_ms: float
    rss_bytes: int | None
    load: float


@dataclass
class Schedule:
    """The cells to measure in every round. `on_failure` is called when a target fails, which is then measured no more.

    After `minutes` no measurement is begun. Prompts' token ids are below `vocab`.
    """

    cells: Sequence[Cell]
    vocab: int
    on_failure: Callable[[Target, Cell, Exception], None]
    minutes: float | None = None
    began: float = field(default_factory=time.monotonic)
    failed_targets: set[str] = field(default_factory=set)

    @property
    def out_of_time(self) -> bool:
        return self.minutes is not None and time.monotonic() - self.began > 60 * self.minutes

    def measure_round(self, targets: Sequence[Target], round_: int) -> Iterator[Record]:
        """Measure each cell on all of `targets` that have its adapters; yields each record as it ends.

        Round 0 warms up: its answers are short, and it yields nothing.
        """
        for index, whole in enumerate(self.cells):
            cell = whole if round_ > 0 else replace(whole, output=WARM_UP_OUTPUT)
            for target in targets:
                if target.name in self.failed_targets or not target.adapters.issuperset(cell.models):
                    continue
                if self.out_of_time:
                    return
                seed = 1000 * round_ + index
                try:
                    run = target.run(cell.make_requests(target.base_id, self.vocab, seed), cell.arrivals, seed)
                except (BenchError, httpx.HTTPError) as error:
                    self.failed_targets.add(target.name)
                    self.on_failure(target, cell, error)
                    continue
                if round_ > 0:
                    yield to_record(target, cell, round_, run)


def measure(targets: Sequence[Target], schedule: Schedule, rounds: int) -> Iterator[Record]:
    """The records of `rounds` rounds, after one to warm up."""
    for round_ in range(rounds + 1):
        yield from schedule.measure_round(targets, round_)


def to_record(target: Target, cell: Cell, round_: int, run: LoadResult) -> Record:
    ttft_ms = [1e3 * timing.ttft_s for timing in run.timings]
    gaps_ms = [1e3 * gap for timing in run.timings for gap in timing.gaps_s]
    ttft = _percentiles(ttft_ms)
    itl = _percentiles(gaps_ms)
    return Record(
        server=target.name,
        traffic=cell.traffic,
        round=round_,
        adapters=len(cell.models),
        rank=cell.rank,
        mix=str(cell.mix or ""),
        arrivals=str(cell.arrivals),
        requests=len(run.timings),
        prompt_tokens=str(cell.prompt),
        output_tokens=str(cell.output),
        tokens_per_s=run.tokens_per_s,
        wall_s=run.wall_s,
        ttft_p50_ms=ttft[0],
        ttft_p95_ms=ttft[1],
        ttft_p99_ms=ttft[2],
        itl_p50_ms=itl[0],
        itl_p95_ms=itl[1],
        itl_p99_ms=itl[2],
        rss_bytes=memory.resident_bytes(target.pid) if target.pid else None,
        load=os.getloadavg()[0],
    )


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 50th, 95th and 99th percentile; nan without values, such as the gaps of one-token answers."""
    p50, p95, p99 = np.percentile(values, (50, 95, 99)) if values else (float("nan"),) * 3
    return float(p50), float(p95), float(p99)
