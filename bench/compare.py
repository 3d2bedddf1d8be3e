"""`python -m bench.compare`: base, one adapter and eight adapters, in bf16 and in NF4, from one run.

Owns the order of measurements: rounds are interleaved over servers and traffic, since a machine drifts. A black
box over HTTP: it starts its servers with the `rootstock` command, or measures the one at `--url`.
"""

import asyncio
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench import header, launch, make_adapters, report
from bench.load import Run, Shape, bodies, closed_loop
from bench.workload import Popularity, assign

BASE = "base"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is sent. Each measurement is `concurrency * per_client` requests."""

    rounds: int
    concurrency: int
    per_client: int
    adapters: int
    shape: Shape

    @property
    def requests(self) -> int:
        return self.concurrency * self.per_client

    def traffics(self, base_id: str) -> dict[str, list[str]]:
        """The model that each request of a measurement asks for, by the name of the traffic."""
        return {
            BASE: [base_id] * self.requests,
            "1 adapter": self._mix(Popularity.IDENTICAL),
            f"{self.adapters} adapters": self._mix(Popularity.DISTINCT),
        }

    def _mix(self, popularity: Popularity) -> list[str]:
        return [f"a{index}" for index in assign(popularity, self.requests, self.adapters)]


def measure(servers: dict[str, launch.Server], plan: Plan) -> Iterator[tuple[str, str, Run]]:
    """One unmeasured round to warm up, then `plan.rounds` rounds; yields (server, traffic, run) as they end."""
    for round_ in range(plan.rounds + 1):
        for name, server in servers.items():
            for index, (traffic, models) in enumerate(plan.traffics(server.base_id).items()):
                requests = bodies(models, plan.shape, seed=1000 * round_ + index)
                run = asyncio.run(closed_loop(server.url, requests, plan.concurrency))
                if round_ > 0:
                    yield name, traffic, run


def upload_all(server: launch.Server, adapters: Sequence[Path]) -> None:
    for adapter in adapters:
        launch.upload(server.url, adapter.name, adapter)


def main(
    url: Annotated[str | None, typer.Option(help="Measure this server instead of starting some.")] = None,
    base_dir: Annotated[Path | None, typer.Option(help="With --url: the directory of the base it serves.")] = None,
    work_dir: Annotated[Path, typer.Option(help="Data directories, adapters and results go here.")] = Path(
        "data/bench"
    ),
    precision: Annotated[list[str] | None, typer.Option(help="bf16, nf4 or fp4; repeat for several.")] = None,
    serve_flags: Annotated[str, typer.Option(help="More flags for `rootstock serve`, as one string.")] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    concurrency: Annotated[int, typer.Option(min=1)] = 8,
    per_client: Annotated[int, typer.Option(min=1, help="Requests that each client sends in a measurement.")] = 2,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    output_tokens: Annotated[int, typer.Option(min=2)] = 64,
    adapters: Annotated[int, typer.Option(min=1)] = 8,
    rank: Annotated[int, typer.Option(min=1, max=256)] = 16,
) -> None:
    """Measure output tokens per second of base, one adapter and several adapters, in one interleaved run."""
    console = Console()
    work_dir.mkdir(parents=True, exist_ok=True)
    setting = report.machine()
    with ExitStack() as stack:
        if url:
            servers = {"server": launch.Server(url, launch.base_id(url), base_dir)}
        else:
            servers = {
                name: stack.enter_context(launch.serve(work_dir / name, _flags(name, serve_flags)))
                for name in precision or ["bf16", "nf4"]
            }
        base = _base_directory(servers)
        shape = Shape(header.vocab_size(base), prompt_tokens, output_tokens)
        plan = Plan(rounds, concurrency, per_client, adapters, shape)
        written = make_adapters.write(base, work_dir / "adapters", count=adapters, rank=rank)
        for server in servers.values():
            upload_all(server, written)
        runs = _collect(console, servers, plan)
        setting |= {"base": next(iter(servers.values())).base_id, "rank": rank}
    _tell(console, setting, plan, report.rows(runs, BASE), work_dir)


def _flags(precision: str, more: str) -> list[str]:
    quantization = {"bf16": [], "nf4": ["--quantization", "nf4"], "fp4": ["--quantization", "fp4"]}
    if precision not in quantization:
        raise typer.BadParameter(f"{precision} is none of {', '.join(quantization)}.", param_hint="--precision")
    return quantization[precision] + shlex.split(more)


def _base_directory(servers: dict[str, launch.Server]) -> Path:
    for server in servers.values():
        if server.base is not None:
            return server.base
    raise typer.BadParameter(
        "Give the directory of the base: adapters are made to its shapes.", param_hint="--base-dir"
    )


def _collect(console: Console, servers: dict[str, launch.Server], plan: Plan) -> dict[tuple[str, str], list[Run]]:
    runs: dict[tuple[str, str], list[Run]] = {}
    with console.status("warming up"):
        for server, traffic, run in measure(servers, plan):
            runs.setdefault((server, traffic), []).append(run)
            console.print(f"{server:6} {traffic:12} {run.tokens_per_s:8.1f} tok/s")
    return runs


def _tell(console: Console, setting: dict[str, Any], plan: Plan, rows: list[report.Row], work_dir: Path) -> None:
    title = (
        f"{setting['base']}, concurrency {plan.concurrency}, {plan.shape.prompt_tokens} prompt and "
        f"{plan.shape.output_tokens} output tokens, adapters r={setting['rank']} on all linear layers"
    )
    console.print(report.table(title, rows))
    console.print(f"{setting['processor']}, {setting['cores']} cores, load before the run {setting['load']:.2f}")
    document = setting | {
        "concurrency": plan.concurrency,
        "requests": plan.requests,
        "rounds": plan.rounds,
        "prompt_tokens": plan.shape.prompt_tokens,
        "output_tokens": plan.shape.output_tokens,
    }
    report.write_json(work_dir / "compare.json", document, rows)
    report.write_plot(work_dir / "compare.png", title, rows)
    console.print(f"Written: {work_dir / 'compare.json'}, {work_dir / 'compare.png'}")


if __name__ == "__main__":
    typer.run(main)
