"""`rootstock bench compare`: base, one adapter and eight adapters, in bf16 and in NF4, from one run.

Owns which traffic is compared, and our own servers for it. A black box over HTTP: it starts them with the `rootstock`
command, or measures the one at `--url`.
"""

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench import launch, make_adapters, options, weight_shapes
from bench.arrivals import ClosedLoop, Span
from bench.errors import BenchError
from bench.measure import BASE, Cell
from bench.session import Session, run_session
from bench.terminal import terminal
from bench.workload import Mix, Popularity


class Precision(StrEnum):
    BF16 = "bf16"
    NF4 = "nf4"
    FP4 = "fp4"


def comparison_cells(
    concurrency: Sequence[int], per_client: int, prompt: Span, output: Span, adapters: int, rank: int
) -> list[Cell]:
    """Base, one adapter and `adapters` in turn, for each number of clients, each of which asks `per_client` times."""
    names = tuple(f"a{index}" for index in range(adapters))
    one, several = Mix(Popularity.IDENTICAL), Mix(Popularity.DISTINCT)
    cells = []
    for clients in concurrency:
        closed, requests = ClosedLoop(clients), clients * per_client
        cells += [
            Cell(BASE, closed, requests, prompt, output),
            Cell("1 adapter", closed, requests, prompt, output, names[:1], one, rank),
            Cell(f"{adapters} adapters", closed, requests, prompt, output, names, several, rank),
        ]
    return cells


def main(
    url: options.Url = None,
    base_dir: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="With --url: the directory of the base it serves.")
    ] = None,
    minutes: options.Minutes = None,
    work_dir: options.WorkDir = options.WORK_DIR,
    precision: Annotated[
        list[Precision] | None,
        typer.Option(help="Of the base, a server each; repeat for several. bf16 and nf4 by default."),
    ] = None,
    serve_flags: options.ServeFlags = "",
    rounds: options.Rounds = 3,
    concurrency: Annotated[list[int] | None, options.several_clients("8")] = None,
    per_client: options.PerClient = 2,
    prompt_tokens: options.PromptTokens = 128,
    output_tokens: options.OutputTokens = 64,
    adapters: options.Adapters = 8,
    rank: options.Rank = 16,
) -> None:
    """Measure base, one adapter and several adapters on our own servers, in one interleaved run."""
    with ExitStack() as stack:
        if url:
            if base_dir is None:
                raise typer.BadParameter(
                    "It is needed with --url: adapters are made to its shapes.", param_hint="--base-dir"
                )
            servers: dict[str, launch.Server] = {"server": launch.Server(url, launch.base_id(url), base_dir)}
        else:
            servers = {
                name.value: stack.enter_context(launch.serve(work_dir / name, _flags(name, serve_flags)))
                for name in precision or (Precision.BF16, Precision.NF4)
            }
        base = _base_directory(servers)
        written = make_adapters.write(base, work_dir / "adapters", count=adapters, rank=rank)
        targets = [launch.target(name, server, written) for name, server in servers.items()]
        cells = comparison_cells(
            concurrency or [8],
            per_client,
            Span(prompt_tokens, prompt_tokens),
            Span(output_tokens, output_tokens),
            adapters,
            rank,
        )
        title = (
            f"{targets[0].base_id}, {prompt_tokens} prompt and {output_tokens} output tokens, "
            f"adapters r={rank} on all linear layers"
        )
        run_session(
            terminal(),
            Session("compare", title, work_dir, rounds, weight_shapes.vocab_size(base), minutes),
            targets,
            cells,
        )


def _flags(precision: Precision, more: str) -> list[str]:
    quantization = [] if precision is Precision.BF16 else ["--quantization", precision.value]
    return quantization + shlex.split(more)


def _base_directory(servers: dict[str, launch.Server]) -> Path:
    for server in servers.values():
        if server.base is not None:
            return server.base
    raise BenchError("The directory of the base that is served was not found, and adapters are made to its shapes.")
