"""`rootstock bench step`: a decode step of base requests against its bare matrix products.

Owns the command. torch and the engine are imported when it runs, so that the other commands start at once.
"""

from pathlib import Path
from typing import Annotated

import orjson
import typer

from bench import options
from bench.terminal import terminal


def main(
    base: options.Base = "embedded",
    dtype: str = "bfloat16",
    data_dir: Annotated[Path, typer.Option(help="Where a converted base is kept.")] = Path("data"),
    rows: Annotated[int, typer.Option(min=1, help="Requests in the batch.")] = 8,
    context: Annotated[int, typer.Option(min=1, help="Prompt tokens of each.")] = 128,
    steps: Annotated[int, typer.Option(min=3)] = 40,
    kernels: Annotated[bool, typer.Option(help="With the compiled CPU kernels.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Time decode steps and their bare matrix products in turn, and print the ratio of the medians."""
    from bench.inside import step_and_products

    found = step_and_products(base, dtype, data_dir, rows, context, steps, kernels)
    if as_json:
        typer.echo(orjson.dumps(found))
        return
    console = terminal()
    step, as_torch, as_house = found["step_ms"], found["torch_ms"], found["house_ms"]
    console.print(f"decode step of {rows} base requests at {context} tokens: {step:.1f} ms")
    console.print(f"bare products: {as_torch:.1f} ms as torch multiplies, {as_house:.1f} ms as the server multiplies")
    console.print(f"[bold]{step / min(as_torch, as_house):.2f}[/bold] times the faster of the two")
