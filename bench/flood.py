"""`rootstock bench flood`: what one tenant's flood does to another tenant's first token, in milliseconds.

Owns the two tenants' clients and the verdict. Starts a server that asks for keys, and knows it by HTTP and by the
`rootstock keys` command. The quiet tenant sends one request after the other, with pauses: alone, and then while the
other one keeps many streams in flight, in turn.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.table import Table

from bench import launch, options, report, weight_shapes
from bench.api import Api, CompletionRequest, Vllm
from bench.arrivals import Span
from bench.load import RequestTiming, complete, connected, random_prompt
from bench.terminal import terminal

QUIET, FLOOD = "quiet", "flood"
"""The two tenants."""
KINDS = ("idle", "flooded")
"""How phases are called, by whether the other tenant floods."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What both tenants send.

    `pause_s` is the mean of the quiet one's random pauses, by which its requests arrive at any moment of a step. The
    flood keeps `streams` in flight, from `settle_s` before the quiet one starts.
    """

    requests: int
    prompt: Span
    output: Span
    pause_s: float
    streams: int
    flood_prompt: Span
    flood_output: Span
    settle_s: float


@dataclass(frozen=True, slots=True)
class FloodSetup:
    """A server, each tenant's API with its key, and the traffic. Prompts' token ids are below `vocab`."""

    url: str
    base_id: str
    vocab: int
    quiet: Api
    flood: Api
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class Phase:
    """The quiet tenant's latencies in milliseconds, and the flood's output tokens per second meanwhile (0 while idle).

    `load` is the machine's load average at the end.
    """

    round: int
    flooded: bool
    ttft_ms: tuple[float, ...]
    itl_ms: tuple[float, ...]
    flood_tokens_per_s: float
    load: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ratios` has one for each round: the median time to the first token beside the flood, over the idle server's.

    Their median `ratio` must be at most `most`. `ratio_p95` is the ratio of the 95th percentiles over all rounds.
    """

    ratios: tuple[float, ...]
    ratio: float
    ratio_p95: float
    most: float

    @property
    def holds(self) -> bool:
        return self.ratio <= self.most


def judge(phases: Sequence[Phase], most: float) -> Verdict:
    """The verdict on `phases`, of which every round has an idle and a flooded one."""
    idle, flooded = ([phase for phase in phases if phase.flooded is kind] for kind in (False, True))
    alone = {phase.round: median(phase.ttft_ms) for phase in idle}
    ratios = tuple(median(phase.ttft_ms) / alone[phase.round] for phase in flooded)
    return Verdict(ratios, median(ratios), _ttft(flooded, 95) / _ttft(idle, 95), most)


def measure(setup: FloodSetup, rounds: int) -> Iterator[Phase]:
    """Idle and flooded in turn, since a machine drifts; before them a request of each kind, to warm up."""
    traffic, generator = setup.traffic, random.Random(0)
    for api, prompt in ((setup.flood, traffic.flood_prompt), (setup.quiet, traffic.prompt)):
        asyncio.run(_once(setup.url, api, _make_request(setup, generator, prompt, Span(2, 2))))
    for round_ in range(1, rounds + 1):
        for flooded in (False, True):
            yield asyncio.run(_phase(setup, round_, flooded))


async def _once(url: str, api: Api, request: CompletionRequest) -> None:
    async with connected(url, api, 1) as client:
        await complete(client, request, api)


async def _phase(setup: FloodSetup, round_: int, flooded: bool) -> Phase:
    streams = setup.traffic.streams if flooded else 0
    async with _flooding(setup, streams, seed=round_) as flood:
        began, before = time.perf_counter(), flood.tokens
        timings = await _quiet_requests(setup, seed=2 * round_ + flooded)  # the same prompts again would be cached
        tokens_per_s = (flood.tokens - before) / (time.perf_counter() - began)
    return Phase(
        round=round_,
        flooded=flooded,
        ttft_ms=tuple(1e3 * timing.ttft_s for timing in timings),
        itl_ms=tuple(1e3 * gap for timing in timings for gap in timing.gaps_s),
        flood_tokens_per_s=tokens_per_s,
        load=os.getloadavg()[0],
    )


async def _quiet_requests(setup: FloodSetup, seed: int) -> list[RequestTiming]:
    """The timings of one request after the other. The first is left out: it meets the end of the previous phase."""
    traffic, generator = setup.traffic, random.Random(seed)
    timings = []
    async with connected(setup.url, setup.quiet, 1) as client:
        for _ in range(traffic.requests + 1):
            request = _make_request(setup, generator, traffic.prompt, traffic.output)
            timings.append(await complete(client, request, setup.quiet))
            await asyncio.sleep(generator.expovariate(1 / traffic.pause_s))
    return timings[1:]


@dataclass(slots=True)
class _Flood:
    """The number of tokens that the flood has received."""

    tokens: int = 0

    def add(self, tokens: int) -> None:
        self.tokens += tokens


@asynccontextmanager
async def _flooding(setup: FloodSetup, streams: int, seed: int) -> AsyncIterator[_Flood]:
    """Keep `streams` requests in flight until the block ends, then cancel them. Raises what ended one before."""
    flood = _Flood()
    async with connected(setup.url, setup.flood, max(streams, 1)) as client:
        tasks = [
            asyncio.create_task(_stream(client, setup, random.Random(f"{seed} {number}"), flood))
            for number in range(streams)
        ]
        try:
            await _settle(tasks, setup.traffic.settle_s)
            yield flood
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error


async def _settle(tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Let streams go on for a while. Raises what ended one of them."""
    if tasks:
        ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()


async def _stream(client: httpx.AsyncClient, setup: FloodSetup, generator: random.Random, flood: _Flood) -> None:
    """One answer after the other."""
    traffic = setup.traffic
    while True:
        request = _make_request(setup, generator, traffic.flood_prompt, traffic.flood_output)
        await complete(client, request, setup.flood, flood.add)


def _make_request(setup: FloodSetup, generator: random.Random, prompt: Span, output: Span) -> CompletionRequest:
    tokens = random_prompt(generator, setup.vocab, prompt.draw(generator))
    return CompletionRequest(setup.base_id, tokens, output.draw(generator))


def _ttft(phases: Iterable[Phase], percent: float) -> float:
    return float(np.percentile([one for phase in phases for one in phase.ttft_ms], percent))


def _itl(phases: Iterable[Phase], percent: float) -> float:
    """nan where answers have one token."""
    gaps = [one for phase in phases for one in phase.itl_ms]
    return float(np.percentile(gaps, percent)) if gaps else float("nan")


def table(title: str, phases: Sequence[Phase], verdict: Verdict) -> Table:
    result = Table(title=title)
    result.add_column("the server is")
    for column in ("TTFT p50", "p95", "ITL p50", "p95", "flood tok/s"):
        result.add_column(column, justify="right")
    for kind, name in enumerate(KINDS):
        these = [phase for phase in phases if phase.flooded == kind]
        latencies = (*(_ttft(these, percent) for percent in (50, 95)), *(_itl(these, percent) for percent in (50, 95)))
        rate = median(phase.flood_tokens_per_s for phase in these)
        result.add_row(name, *(f"{latency:.0f} ms" for latency in latencies), f"{rate:.1f}")
    result.add_row("ratio", f"{verdict.ratio:.2f}", f"{verdict.ratio_p95:.2f}", "", "", "")
    return result


def main(
    requests: Annotated[int, typer.Option(min=1, help="Requests of the quiet tenant in each phase.")] = 10,
    prompt_tokens: Annotated[
        str, typer.Option(help="Tokens of the quiet tenant's prompts: 128, or 64-256 to draw.")
    ] = "128",
    output_tokens: Annotated[
        str, typer.Option(help="Tokens of the quiet tenant's answers: 16, or 8-32 to draw.")
    ] = "16",
    pause: Annotated[float, typer.Option(min=0.001, help="Mean seconds between an answer and the next request.")] = 0.3,
    streams: Annotated[int, typer.Option(min=1, help="Requests that the other tenant keeps in flight.")] = 32,
    flood_prompt_tokens: Annotated[
        str, typer.Option(help="Tokens of the other tenant's prompts: 512, or 256-512 to draw.")
    ] = "512",
    flood_output_tokens: Annotated[
        str, typer.Option(help="Tokens of the other tenant's answers: 64, or 64-192 to draw.")
    ] = "64-192",
    settle: Annotated[float, typer.Option(min=0, help="Seconds of flood before the quiet tenant asks.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often the server is measured idle, then flooded.")] = 3,
    most: Annotated[
        float, typer.Option(min=0, help="Fail where the first token takes more times as long as on the idle server.")
    ] = 2.0,
    work_dir: options.WorkDir = options.WORK_DIR,
    base: options.Base = "embedded",
    serve_flags: options.ServeFlags = "",
) -> None:
    """Measure a quiet tenant's first token beside another tenant's flood, against the idle server."""
    traffic = Traffic(
        requests=requests,
        prompt=options.parse_option(Span.parse, prompt_tokens, "--prompt-tokens"),
        output=options.parse_option(Span.parse, output_tokens, "--output-tokens"),
        pause_s=pause,
        streams=streams,
        flood_prompt=options.parse_option(Span.parse, flood_prompt_tokens, "--flood-prompt-tokens"),
        flood_output=options.parse_option(Span.parse, flood_output_tokens, "--flood-output-tokens"),
        settle_s=settle,
    )
    machine = report.machine() | {"base": base, "serve_flags": serve_flags}
    phases = list(_run(traffic, rounds, work_dir / "flood", launch.flags(base, f"--keys on {serve_flags}")))
    verdict = judge(phases, most)
    _report_results(traffic, phases, verdict, work_dir / "flood.json", machine)
    if not verdict.holds:
        raise typer.Exit(1)


def _run(traffic: Traffic, rounds: int, data_dir: Path, flags: Sequence[str]) -> Iterator[Phase]:
    """The phases on a server of its own; prints each as it ends."""
    quiet, flood = (
        Vllm(headers={"authorization": f"Bearer {launch.make_key(data_dir, tenant)}"}) for tenant in (QUIET, FLOOD)
    )
    with launch.serve(data_dir, flags, headers=quiet.headers) as server:
        vocab = weight_shapes.vocab_size(options.known_base(server.base, options.FOR_PROMPTS))
        for phase in measure(FloodSetup(server.url, server.base_id, vocab, quiet, flood, traffic), rounds):
            typer.echo(f"round {phase.round} {KINDS[phase.flooded]:7} TTFT p50 {median(phase.ttft_ms):6.0f} ms")
            yield phase


def _report_results(
    traffic: Traffic, phases: Sequence[Phase], verdict: Verdict, file: Path, machine: dict[str, Any]
) -> None:
    console = terminal()
    console.print(table(f"beside {traffic.streams} streams of another tenant", phases, verdict))
    console.print(f"{machine['processor']}, {machine['cores']} cores, load before {machine['load']:.2f}")
    document = {
        "setting": machine | asdict(traffic),
        "verdict": asdict(verdict) | {"holds": verdict.holds},
        "phases": [asdict(phase) for phase in phases],
    }
    console.print(f"Written: {report.save_json(file, document)}", soft_wrap=True)
    if not verdict.holds:
        console.print(
            f"The first token takes {verdict.ratio:.2f} times as long beside the flood: above {verdict.most:g}"
        )
