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

from bench import header, launch, options, report
from bench.api import Api, Ask, Vllm
from bench.arrivals import Span
from bench.load import Trace, complete, connected, random_prompt
from bench.terminal import terminal

QUIET, FLOOD = "quiet", "flood"
"""The two tenants."""
KINDS = ("idle", "flooded")
"""How phases are called, by whether the other tenant floods."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What both send. Of the quiet one's pauses `pause_s` is the mean: it comes at any moment of a step. The flood has
    `streams` in flight at any time, for `settle_s` before the quiet one asks."""

    requests: int
    prompt: Span
    output: Span
    pause_s: float
    streams: int
    flood_prompt: Span
    flood_output: Span
    settle_s: float


@dataclass(frozen=True, slots=True)
class Setting:
    """A server, and how each tenant speaks to it; `vocab` bounds the prompts' token ids."""

    url: str
    base_id: str
    vocab: int
    quiet: Api
    flood: Api
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class Phase:
    """What the quiet tenant saw, in milliseconds, and the other's output tokens a second meanwhile: 0 while it was
    idle. `load` is the machine's load average when it ended."""

    round: int
    flooded: bool
    ttft_ms: tuple[float, ...]
    itl_ms: tuple[float, ...]
    flood_tokens_per_s: float
    load: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ratios` are the rounds' own: the median first token beside the flood over that of the idle server. Their median
    is judged; `ratio_p95` is that of the 95th percentiles over all rounds."""

    ratios: tuple[float, ...]
    ratio: float
    ratio_p95: float
    most: float

    @property
    def holds(self) -> bool:
        return self.ratio <= self.most


def judge(phases: Sequence[Phase], most: float) -> Verdict:
    """Every round has a phase of both kinds."""
    idle, flooded = ([phase for phase in phases if phase.flooded is kind] for kind in (False, True))
    alone = {phase.round: median(phase.ttft_ms) for phase in idle}
    ratios = tuple(median(phase.ttft_ms) / alone[phase.round] for phase in flooded)
    return Verdict(ratios, median(ratios), _ttft(flooded, 95) / _ttft(idle, 95), most)


def measure(setting: Setting, rounds: int) -> Iterator[Phase]:
    """Idle and flooded in turn, since a machine drifts; before them a request of each kind, to warm up."""
    traffic, generator = setting.traffic, random.Random(0)
    for api, prompt in ((setting.flood, traffic.flood_prompt), (setting.quiet, traffic.prompt)):
        asyncio.run(_once(setting.url, api, _ask(setting, generator, prompt, Span(2, 2))))
    for round_ in range(1, rounds + 1):
        for flooded in (False, True):
            yield asyncio.run(_phase(setting, round_, flooded))


async def _once(url: str, api: Api, ask: Ask) -> None:
    async with connected(url, api, 1) as client:
        await complete(client, ask, api)


async def _phase(setting: Setting, round_: int, flooded: bool) -> Phase:
    streams = setting.traffic.streams if flooded else 0
    async with _flooding(setting, streams, seed=round_) as flood:
        began, before = time.perf_counter(), flood.tokens
        traces = await _ask_quietly(setting, seed=2 * round_ + flooded)  # the same prompts again would be cached
        tokens_per_s = (flood.tokens - before) / (time.perf_counter() - began)
    return Phase(
        round=round_,
        flooded=flooded,
        ttft_ms=tuple(1e3 * trace.ttft_s for trace in traces),
        itl_ms=tuple(1e3 * gap for trace in traces for gap in trace.gaps_s),
        flood_tokens_per_s=tokens_per_s,
        load=os.getloadavg()[0],
    )


async def _ask_quietly(setting: Setting, seed: int) -> list[Trace]:
    """One request after the other. The first is not counted: it finds the end of what was there before."""
    traffic, generator = setting.traffic, random.Random(seed)
    traces = []
    async with connected(setting.url, setting.quiet, 1) as client:
        for _ in range(traffic.requests + 1):
            ask = _ask(setting, generator, traffic.prompt, traffic.output)
            traces.append(await complete(client, ask, setting.quiet))
            await asyncio.sleep(generator.expovariate(1 / traffic.pause_s))
    return traces[1:]


@dataclass(slots=True)
class _Flood:
    """What it has got so far."""

    tokens: int = 0

    def add(self, tokens: int) -> None:
        self.tokens += tokens


@asynccontextmanager
async def _flooding(setting: Setting, streams: int, seed: int) -> AsyncIterator[_Flood]:
    """So many streams until the block ends, which hang up then. Raises what ended one of them before."""
    flood = _Flood()
    async with connected(setting.url, setting.flood, max(streams, 1)) as client:
        tasks = [
            asyncio.create_task(_stream(client, setting, random.Random(f"{seed} {number}"), flood))
            for number in range(streams)
        ]
        try:
            await _settle(tasks, setting.traffic.settle_s)
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


async def _stream(client: httpx.AsyncClient, setting: Setting, generator: random.Random, flood: _Flood) -> None:
    """One answer after the other."""
    traffic = setting.traffic
    while True:
        ask = _ask(setting, generator, traffic.flood_prompt, traffic.flood_output)
        await complete(client, ask, setting.flood, flood.add)


def _ask(setting: Setting, generator: random.Random, prompt: Span, output: Span) -> Ask:
    tokens = random_prompt(generator, setting.vocab, prompt.draw(generator))
    return Ask(setting.base_id, tokens, output.draw(generator))


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
    requests: Annotated[int, typer.Option(min=1, help="Of the quiet tenant, in each phase.")] = 10,
    prompt_tokens: Annotated[str, typer.Option(help="Of the quiet tenant: 128, or 64-256 to draw evenly.")] = "128",
    output_tokens: Annotated[str, typer.Option(help="Of the quiet tenant.")] = "16",
    pause: Annotated[float, typer.Option(min=0.001, help="Mean seconds between an answer and the next request.")] = 0.3,
    streams: Annotated[int, typer.Option(min=1, help="What the other tenant keeps in flight.")] = 32,
    flood_prompt_tokens: Annotated[str, typer.Option(help="Of the other tenant.")] = "512",
    flood_output_tokens: Annotated[str, typer.Option(help="Of the other tenant.")] = "64-192",
    settle: Annotated[float, typer.Option(min=0, help="Seconds of flood before the quiet tenant asks.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, help="Each is idle, then flooded.")] = 3,
    most: Annotated[float, typer.Option(help="The ratio of medians above which the command ends with 1.")] = 2.0,
    work_dir: options.WorkDir = options.WORK_DIR,
    base: options.Base = "embedded",
    serve_flags: options.ServeFlags = "",
) -> None:
    """Measure a quiet tenant's first token beside another tenant's flood, against the idle server."""
    traffic = Traffic(
        requests=requests,
        prompt=options.typed(Span.parse, prompt_tokens, "--prompt-tokens"),
        output=options.typed(Span.parse, output_tokens, "--output-tokens"),
        pause_s=pause,
        streams=streams,
        flood_prompt=options.typed(Span.parse, flood_prompt_tokens, "--flood-prompt-tokens"),
        flood_output=options.typed(Span.parse, flood_output_tokens, "--flood-output-tokens"),
        settle_s=settle,
    )
    machine = report.machine() | {"base": base, "serve_flags": serve_flags}
    phases = list(_run(traffic, rounds, work_dir / "flood", launch.flags(base, f"--keys on {serve_flags}")))
    verdict = judge(phases, most)
    _tell(traffic, phases, verdict, work_dir / "flood.json", machine)
    if not verdict.holds:
        raise typer.Exit(1)


def _run(traffic: Traffic, rounds: int, data_dir: Path, flags: Sequence[str]) -> Iterator[Phase]:
    """On a server of its own, each phase told as it ends."""
    quiet, flood = (
        Vllm(headers={"authorization": f"Bearer {launch.make_key(data_dir, tenant)}"}) for tenant in (QUIET, FLOOD)
    )
    with launch.serve(data_dir, flags, headers=quiet.headers) as server:
        if server.base is None:
            raise typer.BadParameter("The base's directory is needed: prompts are drawn from its vocabulary.")
        vocab = header.vocab_size(server.base)
        for phase in measure(Setting(server.url, server.base_id, vocab, quiet, flood, traffic), rounds):
            typer.echo(f"round {phase.round} {KINDS[phase.flooded]:7} TTFT p50 {median(phase.ttft_ms):6.0f} ms")
            yield phase


def _tell(traffic: Traffic, phases: Sequence[Phase], verdict: Verdict, file: Path, machine: dict[str, Any]) -> None:
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
