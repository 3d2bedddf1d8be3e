"""`rootstock bench step`: a decode step against its bare matrix products, and what adapters add to it and to a prompt.

Owns the command. torch and the engine are imported when it runs, so that the other commands start at once.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from bench import options
from bench.terminal import terminal

if TYPE_CHECKING:
    from bench.decode_steps import StepSetup


class Dtype(StrEnum):
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def main(
    base: options.Base = "embedded",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the weights that are not quantized.")] = Dtype.BFLOAT16,
    quantization: Annotated[
        options.Quantization | None, typer.Option(help="Quantize the base to 4 bits; in --dtype if not given.")
    ] = None,
    data_dir: options.DataDir = options.DATA_DIR,
    rows: Annotated[int, typer.Option(min=1, help="Requests in the batch.")] = 8,
    context: options.Context = 128,
    adapters: options.AdaptersInBatch = 8,
    rank: options.Rank = 16,
    steps: Annotated[
        int, typer.Option(min=3, help="Steps of each kind in each round; the first two are not counted.")
    ] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="How often all kinds are measured in turn.")] = 3,
    kernels: Annotated[
        bool, typer.Option(help="With the compiled CPU kernels, as the server; or with torch alone.")
    ] = True,
    graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs/--no-cuda-graphs",
            help="On a GPU, replay recorded steps, as the server; or launch each operator.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Time decode steps of the base, its bare products, steps with adapters, with one merged, and prompts, in turn."""
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
    lines.append(_prompt_line(found, setup.context))
    return lines


def _prompt_line(found: Mapping[str, float], tokens: int) -> str:
    prompt = found["prompt"]
    line = f"a prompt of {tokens} tokens: {prompt:.1f} ms"
    if "adapted" in found:
        line += f", with an adapter {found['adapted']:.1f} ms, {prompt / found['adapted']:.2f} of the base's speed"
    return line
