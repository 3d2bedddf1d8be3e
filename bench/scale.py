"""`rootstock bench scale`: what thousands of adapters cost, resident or not, and what a cold one costs.

Owns three questions: throughput with few and with many adapters in memory, other requests' pauses while adapters are
read from disk, and the first token of a request whose adapter is not in memory. A black box over HTTP.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from bench import launch, make_adapters, options, report, scrape, weight_shapes
from bench.api import CompletionRequest
from bench.load import LoadResult, RequestShape, closed_loop, make_requests
from bench.terminal import terminal
from bench.workload import Popularity, assign

FEW = 5
MODULES = "q_proj,v_proj"
"""Where published tests of thousands of adapters put theirs (S-LoRA, arXiv 2311.03285, and PEFT's default)."""
POPULARITIES = (Popularity.ZIPF, Popularity.UNIFORM)
CHURNING, COLD, FITTING = 200, 50, 4
"""On the second server: adapters that are read over and over, those whose first token is timed, and how many fit."""
SHORT = (8, 2)
"""Prompt and output tokens of a request that is there for its adapter's sake."""
PROGRESS_EVERY = 250
"""Adapters between two lines that say how far it has come."""

Progress = Callable[[str], None]
"""Says what is done now, for whoever waits minutes for it."""


@dataclass(frozen=True, slots=True)
class ScaleSetup:
    """One server under measurement: `shape` of its requests, `count` adapters named a0, a1, …"""

    url: str
    base_id: str
    shape: RequestShape
    count: int
    concurrency: int
    rounds: int

    @property
    def names(self) -> list[str]:
        return [f"a{index}" for index in range(self.count)]

    @property
    def short(self) -> RequestShape:
        return RequestShape(self.shape.vocab, *SHORT)

    def send(self, models: Sequence[str], shape: RequestShape, seed: int, concurrency: int | None = None) -> LoadResult:
        return asyncio.run(closed_loop(self.url, make_requests(models, shape, seed), concurrency or self.concurrency))


def bring_in(setup: ScaleSetup, progress: Progress) -> None:
    """Ask for each adapter once, so that all are in memory."""
    names = setup.names
    for at in range(0, len(names), PROGRESS_EVERY):
        progress(f"bringing adapters into memory: {at} of {len(names)}")
        setup.send(names[at : at + PROGRESS_EVERY], setup.short, seed=at)


def resident(setup: ScaleSetup, progress: Progress) -> dict[str, Any]:
    """Output tokens per second with few and with all adapters, by popularity, in turn; all adapters are in memory."""
    rates: dict[tuple[Popularity, int], list[float]] = {}
    seeds = itertools.count()  # a prompt that comes again to the same adapter would be in the prefix cache
    for round_ in range(setup.rounds + 1):
        progress(
            f"throughput with few and with all: round {round_} of {setup.rounds}{'' if round_ else ', to warm up'}"
        )
        for popularity in POPULARITIES:
            for adapters in (FEW, setup.count):
                drawn = assign(popularity, 2 * setup.concurrency, adapters, seed=round_)
                run = setup.send([f"a{index}" for index in drawn], setup.shape, seed=next(seeds))
                if round_ > 0:
                    rates.setdefault((popularity, adapters), []).append(run.tokens_per_s)
    return {
        "tokens_per_s": {f"{popularity} {adapters}": median(own) for (popularity, adapters), own in rates.items()},
        "many_of_few": {
            str(popularity): median(_ratios(rates[popularity, setup.count], rates[popularity, FEW]))
            for popularity in POPULARITIES
        },
    }


def disturbed(setup: ScaleSetup, progress: Progress) -> dict[str, Any]:
    """The 99th percentile of base requests' inter-token gaps beside short requests: for adapters that must be read
    from disk each time, and for one adapter that is there."""
    p99: dict[str, list[float]] = {"warm": [], "cold": []}
    seeds = itertools.count()
    for round_ in range(setup.rounds):
        for kind, own in p99.items():
            progress(f"others' pauses beside {kind} adapters: round {round_ + 1} of {setup.rounds}")
            names = ["a0"] * setup.count if kind == "warm" else setup.names
            own.append(asyncio.run(_beside(setup, names, seed=next(seeds))))
    return {
        "itl_p99_s": {kind: median(own) for kind, own in p99.items()},
        "cold_of_warm": median(_ratios(p99["cold"], p99["warm"])),
    }


async def _beside(setup: ScaleSetup, names: Sequence[str], seed: int) -> float:
    """The 99th percentile of base requests' gaps, in seconds, while one client asks for `names` in turn."""
    long = RequestShape(setup.shape.vocab, setup.shape.prompt_tokens, 4 * setup.shape.output_tokens)
    requests = make_requests([setup.base_id] * setup.concurrency, long, seed)
    steady = asyncio.create_task(closed_loop(setup.url, requests, setup.concurrency))
    async with asyncio.TaskGroup() as group:
        group.create_task(_until(steady, setup.url, make_requests(names, setup.short, seed)))
        run = await steady
    return float(np.percentile([gap for timing in run.timings for gap in timing.gaps_s], 99))


async def _until(steady: "asyncio.Task[LoadResult]", url: str, requests: Sequence[CompletionRequest]) -> None:
    """Send requests one after the other, over and over, while the others run."""
    sent = 0
    while not steady.done():
        await closed_loop(url, [requests[sent % len(requests)]], concurrency=1)
        sent += 1


def cold(setup: ScaleSetup, adapters: Sequence[Path], stored: Path) -> dict[str, Any]:
    """Seconds to the first token with an adapter that is on disk, and at once again, when it is in memory.

    Beside it the time to read as many bytes from the same disk. The system has forgotten the files under `stored`, and
    those read; a request for the base then wakes the server, so that neither comes to one that has slept.
    """
    sources = [path / "adapter_model.safetensors" for path in adapters]
    forget((*sources, *stored.rglob("*.safetensors")))  # each is read once from then on
    extra, reading = [], []
    for index, (path, weights) in enumerate(zip(adapters, sources, strict=True)):
        _, first, second = (
            setup.send([model], setup.short, seed=3 * index + turn, concurrency=1).timings[0].ttft_s
            for turn, model in enumerate((setup.base_id, path.name, path.name))
        )
        extra.append(first - second)
        began = time.perf_counter()
        weights.read_bytes()
        reading.append(time.perf_counter() - began)
    return {
        "bytes": sources[0].stat().st_size,
        "extra_ttft_s": median(extra),
        "read_s": median(reading),
        "extra_of_read": median(extra) / median(reading),
    }


def forget(files: Iterable[Path]) -> None:
    """Ask the system to drop what it caches of `files`; where it cannot be asked, nothing happens.

    It keeps what it has not written yet, so that comes first.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _ratios(these: Sequence[float], those: Sequence[float]) -> list[float]:
    return [this / that for this, that in zip(these, those, strict=True)]


def _clocked(console: Console) -> Progress:
    """Lines that begin with the seconds since now."""
    began = time.perf_counter()
    return lambda what: console.print(f"{time.perf_counter() - began:6.0f} s  {what}", highlight=False)


def _upload(server: launch.Server, adapters: Sequence[Path], progress: Progress) -> float:
    """Seconds for each of them."""
    launch.clear(server, adapters)
    began = time.perf_counter()
    progress(f"uploading {len(adapters)}")

    def uploaded(done: int) -> None:
        if done % PROGRESS_EVERY == 0:
            progress(f"uploading: {done} of {len(adapters)} done")

    launch.upload_all(server.url, {adapter.name: adapter for adapter in adapters}, uploaded)
    return (time.perf_counter() - began) / len(adapters)


def _on_device(url: str) -> int:
    return int(scrape.total(url, "rootstock_adapters_resident", 'tier="device"'))


def main(
    count: Annotated[int, typer.Option(min=FEW + 1, help="Registered adapters.")] = 2000,
    rank: options.Rank = 8,
    concurrency: options.Clients = 8,
    rounds: options.Rounds = 3,
    work_dir: options.WorkDir = options.WORK_DIR,
    base: options.Base = "embedded",
    serve_flags: options.ServeFlags = "",
    only_cold: Annotated[bool, typer.Option("--only-cold", help="Time a cold adapter's first token, no more.")] = False,
    modules: Annotated[str, typer.Option(help="The linears that adapters touch, with commas, or `all`.")] = MODULES,
) -> None:
    """Measure few against many adapters, pauses during loads, and the first token of a cold adapter."""
    console, data_dir, flags = terminal(), work_dir / "scale", launch.flags(base, serve_flags)
    progress, count = _clocked(console), min(count, COLD) if only_cold else count
    options_used = {"count": count, "rank": rank, "modules": modules, "concurrency": concurrency}
    found: dict[str, Any] = {"setting": report.machine() | options_used}
    progress("starting the server")
    with launch.serve(data_dir, flags) as server:
        directory = options.known_base(server.base, options.FOR_ADAPTERS)
        shape = RequestShape(weight_shapes.vocab_size(directory))
        progress(f"making {count} adapters")
        touched = () if modules == "all" else modules.split(",")
        adapters = make_adapters.write(directory, work_dir / "many", count=count, rank=rank, modules=touched)
        found["upload_s_each"] = _upload(server, adapters, progress)
        if not only_cold:
            setup = ScaleSetup(server.url, server.base_id, shape, count, concurrency, rounds)
            bring_in(setup, progress)
            found["on_device"] = _on_device(server.url)
            found["resident"] = resident(setup, progress)
            console.print(found)
    progress(f"starting a server that has room for {FITTING} of them")
    small = str(FITTING * (adapters[0] / "adapter_model.safetensors").stat().st_size)
    tight = ["--adapter-device-memory", small, "--adapter-host-memory", small]
    with launch.serve(data_dir, [*flags, *tight]) as server:
        setup = ScaleSetup(server.url, server.base_id, shape, min(count, CHURNING), concurrency, rounds)
        if not only_cold:
            found["disturbed"] = disturbed(setup, progress)
        progress("first tokens of cold adapters")
        found["cold"] = cold(setup, adapters[:COLD], data_dir / "adapters")
    report.print_and_save(console, work_dir / "scale.json", found)
