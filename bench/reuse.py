"""`rootstock bench reuse`: what is computed once and used again: a merged adapter, and a shared prompt.

Owns two ratios: a merged adapter's throughput against the base's, and the first token of a prompt that is cached
against the same prompt's when it was new, with the proof that another adapter does not share it. A black box over HTTP.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median

import httpx

from bench import launch, make_adapters, options, report, scrape, weight_shapes
from bench.load import LoadResult, RequestShape, closed_loop, make_requests
from bench.terminal import terminal

LONG_PROMPT = 1000
CACHED = "rootstock_cached_tokens_total"


def merged(url: str, base_id: str, shape: RequestShape, rounds: int, concurrency: int) -> dict[str, float]:
    """Output tokens per second of the base, of an adapter, and of that adapter merged, in turn; medians."""
    rates: dict[str, list[float]] = {"base": [], "adapter": [], "merged": []}
    for round_ in range(rounds + 1):
        for kind, own in rates.items():
            requests = make_requests([base_id if kind == "base" else "a0"] * concurrency, shape, seed=round_)
            with _merging(url, "a0") if kind == "merged" else nullcontext():
                run = asyncio.run(closed_loop(url, requests, concurrency))
            if round_ > 0:
                own.append(run.tokens_per_s)
    ratios = [one / base for one, base in zip(rates["merged"], rates["base"], strict=True)]
    return {kind: median(own) for kind, own in rates.items()} | {"merged_of_base": median(ratios)}


def shared(url: str, vocab: int, rounds: int) -> dict[str, float]:
    """Seconds to the first token of a long prompt: new, again, and the same under another adapter; medians.

    Beside them, how many prompt tokens each kind found in the cache: for another adapter 0 is the promise.
    """
    ttft: dict[str, list[float]] = {"new": [], "again": [], "other_adapter": []}
    cached = dict.fromkeys(ttft, 0.0)
    for round_ in range(rounds):
        for kind, own in ttft.items():
            before = scrape.total(url, CACHED)
            model = "a1" if kind == "other_adapter" else "a0"
            own.append(_one(url, model, RequestShape(vocab, LONG_PROMPT, 2), seed=100 + round_).timings[0].ttft_s)
            cached[kind] += scrape.total(url, CACHED) - before
    ratios = [again / new for again, new in zip(ttft["again"], ttft["new"], strict=True)]
    return (
        {f"ttft_s_{kind}": median(own) for kind, own in ttft.items()}
        | {f"cached_tokens_{kind}": tokens for kind, tokens in cached.items()}
        | {"again_of_new": median(ratios)}
    )


def _one(url: str, model: str, shape: RequestShape, seed: int) -> LoadResult:
    return asyncio.run(closed_loop(url, make_requests([model], shape, seed), concurrency=1))


@contextmanager
def _merging(url: str, adapter: str) -> Iterator[None]:
    merge = f"{url}/v1/adapters/{adapter}/merge"
    httpx.post(merge, timeout=launch.START_S).raise_for_status()
    try:
        yield
    finally:
        httpx.delete(merge, timeout=launch.START_S).raise_for_status()


def main(
    rounds: options.Rounds = 5,
    concurrency: options.Clients = 8,
    work_dir: options.WorkDir = options.WORK_DIR,
    base: options.Base = "embedded",
    serve_flags: options.ServeFlags = "",
) -> None:
    """Measure a merged adapter against the base, and a cached prompt against a new one."""
    setting = report.machine() | {"base": base, "concurrency": concurrency, "rounds": rounds}
    with launch.serve(work_dir / "reuse", launch.flags(base, serve_flags)) as server:
        directory = options.known_base(server.base, options.FOR_ADAPTERS)
        vocab = weight_shapes.vocab_size(directory)
        written = make_adapters.write(directory, work_dir / "adapters", count=2, rank=16)
        launch.clear(server, written)
        launch.upload_all(server.url, {adapter.name: adapter for adapter in written})
        for model in (server.base_id, "a0", "a1"):  # loads what is to be loaded
            _one(server.url, model, RequestShape(vocab, 8, 2), seed=0)
        found = {
            "setting": setting,
            "merged": merged(server.url, server.base_id, RequestShape(vocab), rounds, concurrency),
            "prefix": shared(server.url, vocab, rounds),
        }
    report.print_and_save(terminal(), work_dir / "reuse.json", found)
