"""Decode steps against their bare matrix products, and with adapters against the same without, in one process.

Owns that one comparison. The only scale inside the house: it drives the engine itself, since HTTP would be
measured with it otherwise.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from adapters.checkpoint import read_directory
from adapters.manifest import AdapterId
from adapters.store import BlobStore
from bench import limits, make_adapters
from engine.build import EngineConfig, build
from engine.engine import Engine
from engine.sequence import Request, SamplingParams
from loader.base import Base, load
from loader.kernels import kernels_for
from loader.source import resolve

BLOCK_SIZE = 16
ADAPTER_BYTES = 4 << 30
WARM_UP = 2
Product = Callable[[Tensor, torch.nn.Module], Tensor]


@dataclass(frozen=True, slots=True)
class Setting:
    """`rows` requests of `context` prompt tokens each; `adapters` of `rank` on all linears, taken in turn."""

    rows: int
    context: int
    adapters: int
    rank: int


def as_torch(x: Tensor, layer: torch.nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return functional.linear(x, weight)


def as_served(x: Tensor, layer: torch.nn.Module) -> Tensor:
    product: Tensor = layer(x)
    return product


def products_s(base: Base, rows: int, multiply: Product) -> float:
    """Seconds for every linear layer of the base, head included, once, on `rows` rows of activations."""
    layers = list(base.linears.values())
    inputs = [torch.randn(rows, layer.in_features).to(dtype=base.dtype, device=base.device) for layer in layers]
    started = time.perf_counter()
    for x, layer in zip(inputs, layers, strict=True):
        multiply(x, layer)
    _wait(base)
    return time.perf_counter() - started


class Decoding:
    """An engine whose requests are all decoding whenever a step of it is timed."""

    def __init__(self, base: Base, store: BlobStore, setting: Setting, steps: int) -> None:
        self._base, self._setting, self._steps = base, setting, steps
        length = setting.context + steps + 2
        blocks = setting.rows * (length // BLOCK_SIZE + 1)
        self._engine: Engine = build(
            base,
            store,
            EngineConfig(blocks, length, adapter_device_bytes=ADAPTER_BYTES, adapter_host_bytes=ADAPTER_BYTES),
        )
        self._asked = 0

    def steps_s(self, adapters: Sequence[AdapterId | None]) -> list[float]:
        """Seconds of decode steps whose rows take `adapters` in turn."""
        params = SamplingParams(max_tokens=self._steps + 2, temperature=0.0, ignore_eos=True)
        for row in range(self._setting.rows):
            prompt = tuple(int(token) for token in torch.randint(256, 4096, (self._setting.context,)))
            self._asked += 1
            self._engine.submit(Request(str(self._asked), prompt, params, adapters[row % len(adapters)]))
        scheduler = self._engine.scheduler
        while scheduler.waiting or any(sequence.remaining > 1 for sequence in scheduler.running):
            self._engine.step()
        times = [self._step_s() for _ in range(self._steps)]
        self._engine.abort_all()
        return times[WARM_UP:]

    def merge(self, adapter: AdapterId) -> None:
        done = self._engine.merge(adapter)
        while not done.done():
            self._engine.step()
        done.result()

    def unmerge(self) -> None:
        self._engine.unmerge()

    def close(self) -> None:
        self._engine.tiers.close()

    def _step_s(self) -> float:
        started = time.perf_counter()
        self._engine.step()
        _wait(self._base)
        return time.perf_counter() - started


def _wait(base: Base) -> None:
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)


def measure(
    name: str,
    dtype: str,
    quantization: str | None,
    data_dir: Path,
    setting: Setting,
    steps: int,
    rounds: int,
    kernels: bool,
) -> dict[str, float]:
    """Milliseconds, medians over `rounds` of `steps` each, of which the first two are not counted.

    `base`, `mixed` and `merged` are decode steps; `torch` and `served` the base's bare products as torch and as the
    server multiplies (`torch` is missing for 4 bits); `adapters` what reading the adapters in the batch takes at the
    bandwidth that was measured beside them.
    """
    source = resolve(name, data_dir)
    base = load(
        source, dtype=dtype, quantization=quantization, kernels=kernels_for("auto", data_dir) if kernels else None
    )
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root, torch.inference_mode():
        store = BlobStore(Path(root) / "store")
        written = make_adapters.write(source.path, Path(root) / "made", count=setting.adapters, rank=setting.rank)
        adapters: list[AdapterId | None] = [store.put(read_directory(path, base.shape)) for path in written]
        decoding = Decoding(base, store, setting, steps)
        for _ in range(rounds):
            found.setdefault("base", []).extend(decoding.steps_s([None]))
            found.setdefault("served", []).extend(products_s(base, setting.rows, as_served) for _ in range(steps))
            if quantization is None:
                found.setdefault("torch", []).extend(products_s(base, setting.rows, as_torch) for _ in range(steps))
            if adapters:
                found.setdefault("mixed", []).extend(decoding.steps_s(adapters))
                decoding.merge(_one(adapters))
                found.setdefault("merged", []).extend(decoding.steps_s(adapters[:1]))
                decoding.unmerge()
                found.setdefault("adapters", []).append(_reading_s(base, setting, source.path))
        decoding.close()
    return {key: 1e3 * median(times) for key, times in found.items()}


def _one(adapters: Sequence[AdapterId | None]) -> AdapterId:
    assert adapters[0] is not None
    return adapters[0]


def _reading_s(base: Base, setting: Setting, path: Path) -> float:
    in_batch = min(setting.adapters, setting.rows)
    floor = limits.floor(path, setting.rows, setting.context, in_batch, setting.rank)
    return floor.adapters / limits.read_bandwidth()
