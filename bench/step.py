"""`python -m bench.step`: a decode step of base requests against its bare matrix products, in one process.

Owns that one comparison. The only scale inside the house: it drives the engine itself, since HTTP would be
measured with it otherwise.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from adapters.store import BlobStore
from engine.build import EngineConfig, build
from engine.engine import Engine
from engine.sequence import Request, SamplingParams
from loader import product
from loader.base import Base, load
from loader.kernels import kernels_for
from loader.source import resolve

BLOCK_SIZE = 16
Product = Callable[[Tensor, Tensor], Tensor]


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(x, weight)


def products_s(base: Base, rows: int, multiply: Product) -> float:
    """Seconds for every linear layer of the base, head included, once, on `rows` rows of activations."""
    weights = [layer.weight.detach() for layer in base.linears.values()]
    inputs = [torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device) for weight in weights]
    started = time.perf_counter()
    for x, weight in zip(inputs, weights, strict=True):
        multiply(x, weight)
    _wait(base)
    return time.perf_counter() - started


def decoding(base: Base, store: BlobStore, rows: int, context: int, steps: int) -> Engine:
    """An engine in which `rows` base requests of `context` prompt tokens have `steps` decode steps ahead of them."""
    length = context + steps + 2
    blocks = rows * (length // BLOCK_SIZE + 1)
    config = EngineConfig(
        num_blocks=blocks, max_model_len=length, adapter_device_bytes=0, adapter_host_bytes=0, max_batch_tokens=512
    )
    engine = build(base, store, config)
    params = SamplingParams(max_tokens=steps + 2, temperature=0.0, ignore_eos=True)
    for row in range(rows):
        prompt = tuple(int(token) for token in torch.randint(256, 4096, (context,)))
        engine.submit(Request(id=str(row), prompt=prompt, params=params))
    while engine.scheduler.waiting or any(sequence.remaining > 1 for sequence in engine.scheduler.running):
        engine.step()
    return engine


def step_s(base: Base, engine: Engine) -> float:
    started = time.perf_counter()
    engine.step()
    _wait(base)
    return time.perf_counter() - started


def _wait(base: Base) -> None:
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)


def main(
    base: Annotated[str, typer.Option(help="As for `rootstock serve`.")] = "embedded",
    dtype: str = "bfloat16",
    data_dir: Annotated[Path, typer.Option(help="Where a converted base is kept.")] = Path("data"),
    rows: Annotated[int, typer.Option(min=1, help="Requests in the batch.")] = 8,
    context: Annotated[int, typer.Option(min=1, help="Prompt tokens of each.")] = 128,
    steps: Annotated[int, typer.Option(min=3)] = 40,
    kernels: Annotated[bool, typer.Option(help="With the compiled CPU kernels.")] = True,
) -> None:
    """Time decode steps and their bare matrix products in turn, and print the ratio of the medians."""
    loaded = load(resolve(base, data_dir), dtype=dtype, kernels=kernels_for("auto", data_dir) if kernels else None)

    def house(x: Tensor, weight: Tensor) -> Tensor:
        return product.linear(x, weight, None, loaded.kernels)

    measured: dict[str, list[float]] = {"step": [], "plain": [], "house": []}
    with tempfile.TemporaryDirectory() as store, torch.inference_mode():
        engine = decoding(loaded, BlobStore(Path(store)), rows, context, steps)
        for _ in range(steps):
            measured["step"].append(step_s(loaded, engine))
            measured["plain"].append(products_s(loaded, rows, plain))
            measured["house"].append(products_s(loaded, rows, house))
    step, *bare = (1e3 * median(times[2:]) for times in measured.values())
    console = Console()
    console.print(f"decode step of {rows} base requests at {context} tokens: {step:.1f} ms")
    console.print(f"bare products: {bare[0]:.1f} ms as torch multiplies, {bare[1]:.1f} ms as the server multiplies")
    console.print(f"[bold]{step / min(bare):.2f}[/bold] times the faster of the two")


if __name__ == "__main__":
    typer.run(main)
