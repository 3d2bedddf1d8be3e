"""`rootstock bench run URL…`: any workload on servers that run already.

Owns how a workload is typed. Starts no server; uploads adapters only where --base-dir names their base.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from bench import launch, make_adapters, options, weight_shapes
from bench.api import Dialect
from bench.arrivals import Arrivals, ClosedLoop, Poisson, Replay, Span
from bench.measure import BASE, Cell, HttpTarget
from bench.running_server import connect
from bench.session import Session, run_session
from bench.terminal import terminal
from bench.workload import Mix

LISTED = 0
"""The rank of adapters that a server has already: it is not known."""


def main(
    server: Annotated[list[str], typer.Argument(metavar="[NAME=]URL…", help="Servers; they are measured in turn.")],
    api: Annotated[list[Dialect] | None, typer.Option(help="One for all servers, or one for each.")] = None,
    base_dir: Annotated[
        Path | None, typer.Option(help="The base's directory: adapters are made to its shapes and uploaded.")
    ] = None,
    adapters: Annotated[list[int] | None, typer.Option(help="How many; repeat for several.")] = None,
    rank: Annotated[list[int] | None, typer.Option(help="With --base-dir; repeat for several.")] = None,
    popularity: Annotated[
        list[str] | None, typer.Option(help="identical, distinct, uniform, zipf:1.5 or skewed; repeat for several.")
    ] = None,
    arrivals: Annotated[
        list[str] | None, typer.Option(help="closed:CLIENTS, poisson:RATE or a trace's FILE.jsonl; repeat for several.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="In each measurement; a trace has its own.")] = 16,
    prompt_tokens: Annotated[str, typer.Option(help="128, or 64-256 to draw evenly.")] = "128",
    output_tokens: Annotated[str, typer.Option(help="64, or 16-128 to draw evenly.")] = "64",
    rounds: options.Rounds = 3,
    vocab: Annotated[int, typer.Option(min=512, help="Prompts are token ids below it; read from --base-dir.")] = 32000,
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
            return ClosedLoop(int(value or 8))
        case "poisson":
            return Poisson(float(value))
    if not text.endswith(".jsonl"):
        raise ValueError("Arrivals are closed:CLIENTS, poisson:RATE or a FILE.jsonl.")
    return Replay.read(Path(text))


def _targets(servers: Sequence[str], dialects: Sequence[Dialect]) -> Iterator[HttpTarget]:
    if len(dialects) not in (1, len(servers)):
        raise typer.BadParameter("Give one for all servers, or one for each.", param_hint="--api")
    for index, argument in enumerate(servers):
        name, equals, url = argument.partition("=")
        if not equals:
            name, url = argument.removeprefix("http://"), argument
        yield connect(name, url.rstrip("/"), dialects[index % len(dialects)])


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
