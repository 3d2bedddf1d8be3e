"""`rootstock bench step`: a decode step against its bare matrix products, and what adapters add to it.

Owns the command. torch and the engine are imported when it runs, so that the other commands start at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from bench import options
from bench.terminal import terminal

if TYPE_CHECKING:
    from bench.decode_steps import StepSetup


def main(
    base: options.Base = "embedded",
    dtype: str = "bfloat16",
    quantization: Annotated[str | None, typer.Option(help="nf4 or fp4; as it is stored if not given.")] = None,
    data_dir: Annotated[Path, typer.Option(help="Where a converted base is kept.")] = Path("data"),
    rows: Annotated[int, typer.Option(min=1, help="Requests in the batch.")] = 8,
    context: Annotated[int, typer.Option(min=1, help="Prompt tokens of each.")] = 128,
    adapters: options.Adapters = 8,
    rank: options.Rank = 16,
    steps: Annotated[int, typer.Option(min=3, help="Steps of each kind in each round.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="All kinds are measured in turn so often.")] = 3,
    kernels: Annotated[bool, typer.Option(help="With the compiled CPU kernels.")] = True,
    graphs: Annotated[bool, typer.Option("--cuda-graphs/--no-cuda-graphs", help="Replay steps on a GPU.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Time decode steps of the base, its bare products, steps with adapters, and with one that is merged, in turn."""
    from bench.decode_steps import StepSetup, measure

    setup = StepSetup(rows, context, adapters, rank)
    found = measure(base, dtype, quantization, data_dir, setup, steps, rounds, kernels, graphs)
    if as_json:
        typer.echo(orjson.dumps(found))
        return
    console = terminal()
    for line in _lines(found, setup, quantization or dtype):
        console.print(line)


def _lines(found: Mapping[str, float], setup: "StepSetup", precision: str) -> list[str]:
    step, served = found["base"], found["served"]
    lines = [
        f"{precision}, {setup.rows} requests at {setup.context} tokens and on; medians",
        f"decode step of the base: {step:.1f} ms, {step / served:.2f} times its bare products ({served:.1f} ms)",
    ]
    if "torch" in found:
        lines.append(f"the same products as torch multiplies: {found['torch']:.1f} ms")
    if "mixed" in found:
        mixed, reading = found["mixed"], found["adapters"]
        extra = mixed - step
        lines += [
            f"with {setup.adapters} adapters r={setup.rank}: {mixed:.1f} ms, {step / mixed:.2f} of"
            f" the base's speed; {extra:.1f} ms more, {extra / reading:.2f} times reading them ({reading:.1f} ms)",
            f"with one that is merged: {found['merged']:.1f} ms, {step / found['merged']:.2f} of the base's speed",
        ]
    return lines
