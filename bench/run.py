"""`rootstock bench run URL…`: any workload on servers that run already.

Owns how a workload is typed. Starts no server; uploads adapters only where --base-dir names their base.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from bench import launch, make_adapters, options, weight_shapes
from bench.api import Dialect
from bench.arrivals import Arrivals, ClosedLoop, Poisson, Replay, Span
from bench.measure import BASE, Cell, HttpTarget
from bench.running_server import connect
from bench.session import Session, run_session
from bench.terminal import terminal
from bench.workload import Mix

T = TypeVar("T", int, float)

LISTED = 0
"""The rank of adapters that a server has already: it is not known."""


def main(
    server: Annotated[list[str], typer.Argument(metavar="[NAME=]URL…", help="Servers; they are measured in turn.")],
    api: Annotated[
        list[Dialect] | None, typer.Option(help="How servers are asked: one for all, or one for each. vllm by default.")
    ] = None,
    base_dir: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="The base's directory: adapters are made to it and uploaded."),
    ] = None,
    adapters: Annotated[
        list[int] | None, typer.Option(min=1, help="Adapters in the traffic; repeat for several numbers. 8 by default.")
    ] = None,
    rank: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Of the adapters made for --base-dir; repeat for several. 16 by default."),
    ] = None,
    popularity: Annotated[
        list[str] | None,
        typer.Option(help="identical, distinct, uniform, skewed or zipf:1.5; repeat for several. zipf by default."),
    ] = None,
    arrivals: Annotated[
        list[str] | None,
        typer.Option(
            help="closed:CLIENTS, poisson:REQUESTS_PER_SECOND or a trace's FILE.jsonl; repeat for several."
            " closed:8 by default."
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests in each measurement; a trace has its own.")] = 16,
    prompt_tokens: options.PromptSpan = "128",
    output_tokens: options.OutputSpan = "64",
    rounds: options.Rounds = 3,
    vocab: Annotated[
        int, typer.Option(min=512, help="Prompts are token ids below it; --base-dir tells its own instead.")
    ] = 32000,
    minutes: options.Minutes = None,
    work_dir: options.WorkDir = options.WORK_DIR,
) -> None:
    """Send a workload to servers by URL, and tell throughput, latencies and memory."""
    counts, mixes = (
        adapters or [8],
        [options.parse_option(Mix.parse, text, "--popularity") for text in popularity or ["zipf"]],
    )
    prompt = options.parse_option(Span.parse, prompt_tokens, "--prompt-tokens")
    output = options.parse_option(Span.parse, output_tokens, "--output-tokens")
    comings = [options.parse_option(parse_arrivals, text, "--arrivals") for text in arrivals or ["closed:8"]]
    targets = list(_targets(server, api or [Dialect.VLLM]))
    if base_dir:
        sets = {each: _uploaded(targets, base_dir, work_dir, each, max(counts)) for each in rank or [16]}
        vocab = weight_shapes.vocab_size(base_dir)
        targets = [connect(target.name, target.url, Dialect.VLLM) for target in targets]
    else:
        sets = {LISTED: sorted(frozenset.intersection(*(target.adapters for target in targets)))}
    cells = list(_cells(sets, counts, mixes, comings, prompt, output, requests))
    title = f"{prompt_tokens} prompt and {output_tokens} output tokens"
    run_session(terminal(), Session("run", title, work_dir, rounds, vocab, minutes), targets, cells)


def parse_arrivals(text: str) -> Arrivals:
    """Raises ValueError where it is none of the three."""
    kind, _, value = text.partition(":")
    match kind:
        case "closed":
            return ClosedLoop(_positive(int, value or "8", "closed:8"))
        case "poisson":
            return Poisson(_positive(float, value, "poisson:2.5"))
    if not text.endswith(".jsonl"):
        raise ValueError("Arrivals are closed:CLIENTS, poisson:RATE or a FILE.jsonl.")
    return Replay.read(Path(text))


def _positive(number: Callable[[str], T], text: str, example: str) -> T:
    """Raises ValueError where `text` is no finite number above 0."""
    with suppress(ValueError):
        if 0 < (value := number(text)) < math.inf:
            return value
    raise ValueError(f"Write a number above 0, as in {example}.")


def _targets(servers: Sequence[str], dialects: Sequence[Dialect]) -> Iterator[HttpTarget]:
    if len(dialects) not in (1, len(servers)):
        raise typer.BadParameter("Give one for all servers, or one for each.", param_hint="--api")
    for index, argument in enumerate(servers):
        name, equals, url = argument.partition("=")
        if not equals:
            name, url = argument.removeprefix("http://"), argument
        url = options.parse_url(url, "[NAME=]URL")
        yield connect(name, url, dialects[index % len(dialects)])


def _uploaded(targets: Sequence[HttpTarget], base: Path, work_dir: Path, rank: int, count: int) -> list[str]:
    """The names of `count` new adapters of `rank`, which every target has now."""
    written = make_adapters.write(base, work_dir / "adapters" / f"r{rank}", count=count, rank=rank)
    named = {f"r{rank}-{path.name}": path for path in written}
    for target in targets:
        launch.upload_all(target.url, named)
    return list(named)


def _cells(
    sets: dict[int, list[str]],
    counts: Sequence[int],
    mixes: Sequence[Mix],
    comings: Sequence[Arrivals],
    prompt: Span,
    output: Span,
    requests: int,
) -> Iterator[Cell]:
    """The base, and every rank with every number of adapters by every popularity, under all arrivals."""
    for coming in comings:
        sent = len(coming.lines) if isinstance(coming, Replay) else requests
        yield Cell(BASE, coming, sent, prompt, output)
        for (rank, names), count, mix in product(sets.items(), counts, mixes):
            if not names:
                continue
            models = tuple(names[:count])
            of_rank = f" r{rank}" if rank != LISTED else ""
            yield Cell(f"{len(models)}{of_rank} {mix}", coming, sent, prompt, output, models, mix, rank)
