"""A decode step of base requests against its bare matrix products, in one process.

Owns that one comparison. The only scale inside the house: it drives the engine itself, since HTTP would be
measured with it otherwise.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
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


def step_and_products(
    base: str, dtype: str, data_dir: Path, rows: int, context: int, steps: int, kernels: bool
) -> dict[str, float]:
    """Milliseconds of a decode step, and of its bare products as torch and as the server multiplies; medians.

    `rows` base requests have `context` prompt tokens each. The first two of `steps` are not counted.
    """
    loaded = load(resolve(base, data_dir), dtype=dtype, kernels=kernels_for("auto", data_dir) if kernels else None)

    def house(x: Tensor, weight: Tensor) -> Tensor:
        return product.linear(x, weight, None, loaded.kernels)

    measured: dict[str, list[float]] = {"step_ms": [], "torch_ms": [], "house_ms": []}
    with tempfile.TemporaryDirectory() as store, torch.inference_mode():
        engine = decoding(loaded, BlobStore(Path(store)), rows, context, steps)
        for _ in range(steps):
            measured["step_ms"].append(step_s(loaded, engine))
            measured["torch_ms"].append(products_s(loaded, rows, plain))
            measured["house_ms"].append(products_s(loaded, rows, house))
    return {name: 1e3 * median(times[2:]) for name, times in measured.items()}
