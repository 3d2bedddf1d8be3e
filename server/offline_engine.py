"""The serving path in this process: what the server would say, without its HTTP.

Owns the running of rows through engine and adapter reader. Implements training/serving.py; loads the base anew for
each call and keeps nothing, so that it can follow a training run in the same process.
"""

import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.bank import num_bytes
from adapters.checkpoint import read_directory
from adapters.manifest import AdapterId
from adapters.store import BlobStore
from engine.build import EngineConfig, build, default_batch_tokens, default_block_size
from engine.engine import Engine
from engine.sequence import FinishReason, Output, Request, SamplingParams
from loader.base import Base, load
from loader.errors import LoaderError
from loader.kernels import kernels_for
from loader.progress import Progress, ignore
from loader.source import resolve

AT_ONCE = 4
"""Rows in one batch: enough that they are mixed as in a server, few enough for any memory that could train."""
_ASK = SamplingParams(max_tokens=0, prompt_logprobs=0)


@dataclass(frozen=True, slots=True)
class OfflineEngine:
    """A ServingPath over `base`, on `device`, both as `rootstock serve` spells them."""

    base: str
    data_dir: Path
    device: str = "auto"
    progress: Progress = ignore

    def logprobs(
        self, adapter: Path | None, rows: Sequence[Sequence[int]], *, dtype: str, quantization: str | None
    ) -> list[list[float]]:
        """As ServingPath says. Raises InvalidAdapter, LoaderError."""
        gc.collect()  # what a trainer leaves behind is held by cycles
        source = resolve(self.base, self.data_dir, self.progress)
        base = load(
            source,
            dtype=dtype,
            quantization=quantization,
            device=self.device,
            kernels=kernels_for(self.device, self.data_dir, self.progress),
            progress=self.progress,
        )
        self.progress("comparing with the serving path", None)
        with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
            store = BlobStore(Path(scratch))
            id = None if adapter is None else store.put(read_directory(adapter, base.shape))
            engine = build(base, store, _config(base, store, id, rows))
            try:
                return _run(engine, id, rows)
            finally:
                engine.tiers.close()


def _config(base: Base, store: BlobStore, id: AdapterId | None, rows: Sequence[Sequence[int]]) -> EngineConfig:
    longest = max(map(len, rows), default=1)
    itemsize = base.adapter_dtype.itemsize
    size = 0 if id is None else num_bytes(store.open(id).manifest, itemsize)
    on_cuda = base.device.type == "cuda"
    block = default_block_size(on_cuda)
    return EngineConfig(
        num_blocks=AT_ONCE * -(-longest // block),
        max_model_len=base.max_model_len,
        adapter_device_bytes=max(1, size),
        adapter_host_bytes=max(1, size),
        block_size=block,
        max_batch_tokens=default_batch_tokens(on_cuda),
        max_sequences=AT_ONCE,
        max_waiting=max(1, len(rows)),
    )


def _run(engine: Engine, id: AdapterId | None, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """Submit every row and step until each has ended."""
    for number, row in enumerate(rows):
        engine.submit(Request(str(number), tuple(row), _ASK, id))
    found: dict[str, Output] = {}
    while engine.scheduler.has_work:
        for request_id, output in engine.step():
            found[request_id] = output
        if engine.stalled:
            time.sleep(0.002)  # the adapter is being read
    return [_logprobs(found[str(number)]) for number in range(len(rows))]


def _logprobs(output: Output) -> list[float]:
    if output.finish_reason is FinishReason.ERROR or output.prompt_logprobs is None:
        raise LoaderError(f"The serving path failed on a row: {output.error or output.finish_reason}")
    return [entry.logprob for entry in output.prompt_logprobs if entry is not None]
