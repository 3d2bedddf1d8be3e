"""Times an engine's decode steps against their bare matrix products, and with adapters against without; prompts too.

Owns that one comparison. The only benchmark that imports the engine: it drives it directly, since HTTP
would be measured with it otherwise.
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
from bench.errors import BenchError
from engine.build import EngineConfig, build, cuda_graphs, default_batch_tokens, default_block_size
from engine.engine import Engine
from engine.recording import CudaGraphs
from engine.sequence import Request, SamplingParams
from loader.base import Base, load
from loader.errors import LoaderError
from loader.kernels import kernels_for
from loader.source import resolve

ADAPTER_BYTES = 4 << 30
READ_BYTES = 1 << 30
WARM_UP = 2
Product = Callable[[Tensor, torch.nn.Module], Tensor]


@dataclass(frozen=True, slots=True)
class StepSetup:
    """The batch: `rows` requests of `context` prompt tokens, which take `adapters` of `rank` on all linears in turn."""

    rows: int
    context: int
    adapters: int
    rank: int


def multiply_with_torch(x: Tensor, layer: torch.nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return functional.linear(x, weight)


def multiply_as_served(x: Tensor, layer: torch.nn.Module) -> Tensor:
    product: Tensor = layer(x)
    return product


class Products:
    """The matrix products of one step: every linear layer of the base, head included, on `rows` rows of activations."""

    def __init__(self, base: Base, rows: int, multiply: Product, graph: bool) -> None:
        """With `graph` they are replayed from a CUDA graph, as decode steps are: launching each would take longer."""
        self._base, self._multiply = base, multiply
        self._layers = list(base.linears.values())
        self._inputs = [
            torch.randn(rows, layer.in_features).to(dtype=base.dtype, device=base.device) for layer in self._layers
        ]
        self._run = CudaGraphs(base.device).record(self._compute) if graph else self._compute

    def seconds(self) -> float:
        started = time.perf_counter()
        self._run()
        _wait(self._base)
        return time.perf_counter() - started

    def _compute(self) -> None:
        for x, layer in zip(self._inputs, self._layers, strict=True):
            self._multiply(x, layer)


class Decoding:
    """An engine whose requests are all decoding whenever a step is timed, or that reads one prompt."""

    def __init__(self, base: Base, store: BlobStore, setup: StepSetup, steps: int, graphs: bool) -> None:
        self._base, self._setting, self._steps = base, setup, steps
        on_cuda = base.device.type == "cuda"
        block, batch = default_block_size(on_cuda), default_batch_tokens(on_cuda)
        # Those whose prompt was read first go on while the others' are read, and must not be done before the last step.
        self._tokens = steps + 2 + setup.rows * (setup.context // batch + 1)
        length = setup.context + self._tokens
        config = EngineConfig(
            num_blocks=setup.rows * (length // block + 1),
            max_model_len=length,
            adapter_device_bytes=ADAPTER_BYTES,
            adapter_host_bytes=ADAPTER_BYTES,
            block_size=block,
            max_batch_tokens=batch,
            max_sequences=setup.rows,
        )
        self._engine: Engine = build(base, store, config, recorder=cuda_graphs(base) if graphs else None)
        self._asked = 0

    def step_seconds(self, adapters: Sequence[AdapterId | None]) -> list[float]:
        """The seconds of each timed decode step, with rows that take `adapters` in turn; None is the base."""
        scheduler = self._engine.scheduler
        self._place(adapters)  # else rows would decode while another's adapter is still read
        for row in range(self._setting.rows):
            self._ask(self._setting.context, self._tokens, adapters[row % len(adapters)])
        while scheduler.waiting or any(sequence.remaining > 1 for sequence in scheduler.running):
            self._engine.step()
        times = [self._step_s() for _ in range(self._steps)]
        assert len(scheduler.running) == self._setting.rows
        self._engine.abort_all()
        return times[WARM_UP:]

    def prompt_seconds(self, adapter: AdapterId | None, times: int) -> list[float]:
        """The seconds until the first token of a prompt that nobody sent before, while nothing else runs."""
        self._place([adapter])
        return [self._prompt_s(adapter) for _ in range(times)]

    def _prompt_s(self, adapter: AdapterId | None) -> float:
        started = time.perf_counter()
        self._ask(self._setting.context, 1, adapter)
        self._finish()
        return time.perf_counter() - started

    def _place(self, adapters: Sequence[AdapterId | None]) -> None:
        for adapter in adapters:
            self._ask(1, 1, adapter)
        self._finish()

    def _finish(self) -> None:
        while self._engine.scheduler.waiting or self._engine.scheduler.running:
            self._engine.step()
        _wait(self._base)

    def _ask(self, prompt_tokens: int, output_tokens: int, adapter: AdapterId | None) -> None:
        prompt = tuple(torch.randint(self._base.model.config.vocab_size, (prompt_tokens,)).tolist())
        params = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
        self._asked += 1
        self._engine.submit(Request(str(self._asked), prompt, params, adapter))

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
    setup: StepSetup,
    steps: int,
    rounds: int,
    kernels: bool,
    graphs: bool = True,
) -> dict[str, float]:
    """Milliseconds, medians over `rounds` of `steps` each, of which the first two are not counted.

    `base`, `mixed` and `merged` are decode steps; `prompt` and `adapted` one prompt of the context's tokens, by the
    base and with an adapter, for every fifth of the steps; `torch` and `served` the base's bare products as torch and
    as the server multiplies (`torch` is missing for 4 bits); `adapters` what reading the adapters in the batch takes at
    the bandwidth that was measured beside them. `kernels` are the CPU's, `graphs` the GPU's. Raises BenchError for a
    base that cannot be had.
    """
    try:
        source = resolve(name, data_dir)
        compiled = kernels_for("auto", data_dir) if kernels else None
        base = load(source, dtype=dtype, quantization=quantization, kernels=compiled)
    except LoaderError as error:
        raise BenchError(str(error)) from error
    graphs = graphs and base.device.type == "cuda"
    ways = (
        {"served": multiply_as_served} if quantization else {"served": multiply_as_served, "torch": multiply_with_torch}
    )
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root, torch.inference_mode():
        store = BlobStore(Path(root) / "store")
        written = make_adapters.write(source.path, Path(root) / "made", count=setup.adapters, rank=setup.rank)
        adapters: list[AdapterId | None] = [store.put(read_directory(path, base.shape)) for path in written]
        decoding = Decoding(base, store, setup, steps, graphs)
        products = {key: Products(base, setup.rows, way, graphs) for key, way in ways.items()}
        for _ in range(rounds):
            prompts = max(2, steps // 5)
            found.setdefault("base", []).extend(decoding.step_seconds([None]))
            found.setdefault("prompt", []).extend(decoding.prompt_seconds(None, prompts))
            for key, product in products.items():
                found.setdefault(key, []).extend(product.seconds() for _ in range(steps))
            if adapters:
                found.setdefault("mixed", []).extend(decoding.step_seconds(adapters))
                found.setdefault("adapted", []).extend(decoding.prompt_seconds(adapters[0], prompts))
                decoding.merge(_one(adapters))
                found.setdefault("merged", []).extend(decoding.step_seconds(adapters[:1]))
                decoding.unmerge()
                found.setdefault("adapters", []).append(_reading_s(base, setup, source.path))
        decoding.close()
    return {key: 1e3 * median(times) for key, times in found.items()}


def _one(adapters: Sequence[AdapterId | None]) -> AdapterId:
    assert adapters[0] is not None
    return adapters[0]


def _reading_s(base: Base, setup: StepSetup, path: Path) -> float:
    in_batch = min(setup.adapters, setup.rows)
    floor = limits.floor(path, setup.rows, setup.context, in_batch, setup.rank)
    return floor.adapters / (_device_bandwidth(base) if base.device.type == "cuda" else limits.read_bandwidth())


def _device_bandwidth(base: Base, repeats: int = 5) -> float:
    """Bytes a second at which the GPU reads its memory, the fastest of `repeats`."""
    data = torch.ones(READ_BYTES // 4, device=base.device)
    fastest = float("inf")
    for _ in range(repeats):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        data.sum()
        ended.record()
        ended.synchronize()
        fastest = min(fastest, began.elapsed_time(ended) / 1e3)
    return READ_BYTES / fastest
