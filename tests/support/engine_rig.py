"""A real engine in the test's own thread: load, submit, step until done, look at every output."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from adapters.checkpoint import read_directory
from adapters.device_quotas import DeviceQuota
from adapters.manifest import AdapterId
from adapters.store import BlobStore
from engine.build import EngineConfig, build
from engine.constraint import Constraint
from engine.engine import Delivery, Engine
from engine.events import Observer, ignore
from engine.recording import Recorder
from engine.runner import ModelRunner
from engine.sequence import FinishReason, Output, Request, SamplingParams, TokenLogprob
from loader.base import Base, load
from loader.source import resolve
from native.kernels import Kernels

MEBI = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything one request was given."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None
    tier: str | None
    finish_reason: FinishReason
    error_code: str | None

    @classmethod
    def of(cls, outputs: Iterable[Output]) -> "Answer":
        every = list(outputs)
        assert [o.finish_reason for o in every[:-1]] == [None] * (len(every) - 1), "a request ends once"
        assert every[-1].finish_reason is not None
        return cls(
            text="".join(o.text for o in every),
            tokens=tuple(token for o in every for token in o.token_ids),
            logprobs=tuple(logprob for o in every for logprob in o.logprobs),
            prompt_logprobs=every[0].prompt_logprobs,
            tier=every[0].admission.tier if every[0].admission else None,
            finish_reason=every[-1].finish_reason,
            error_code=every[-1].error_code,
        )


class EngineRig:
    """One base, one store, one engine."""

    def __init__(
        self,
        base: Base,
        root: Path,
        config: EngineConfig,
        observe: Observer = ignore,
        recorder: Recorder | None = None,
    ) -> None:
        self.base, self.config = base, config
        self.store = BlobStore(root / "adapters")
        self.engine: Engine = build(base, self.store, config, observe, recorder)
        self._numbers = count()

    @classmethod
    def load(
        cls,
        model: Path,
        root: Path,
        *,
        dtype: str = "float32",
        quantization: str | None = None,
        device_bytes: int = 64 * MEBI,
        host_bytes: int = 64 * MEBI,
        num_blocks: int = 256,
        block_size: int = 4,
        max_batch_tokens: int = 32,
        max_sequences: int = 8,
        observe: Observer = ignore,
        kernels: Kernels | None = None,
        device: str = "cpu",
        recorder: Recorder | None = None,
        device_quota: DeviceQuota | None = None,
    ) -> "EngineRig":
        """Small blocks and steps, so that a short test crosses every boundary."""
        base = load(resolve(str(model), root), dtype=dtype, quantization=quantization, device=device, kernels=kernels)
        config = EngineConfig(
            num_blocks=num_blocks,
            max_model_len=base.max_model_len,
            adapter_device_bytes=device_bytes,
            adapter_host_bytes=host_bytes,
            block_size=block_size,
            max_batch_tokens=max_batch_tokens,
            max_sequences=max_sequences,
            device_quota=device_quota or DeviceQuota(),
        )
        return cls(base, root, config, observe, recorder)

    @property
    def bank_bytes(self) -> int:
        """What adapters really take on the device, counted from their tensors."""
        runner = self.engine._runner
        assert isinstance(runner, ModelRunner)
        return runner._bank.num_bytes

    def add(self, directory: Path) -> AdapterId:
        """Read an adapter as PEFT saved it, and store it."""
        return self.store.put(read_directory(directory, self.base.shape))

    def submit(
        self,
        prompt: Iterable[int],
        params: SamplingParams,
        adapter: AdapterId | None = None,
        constraint: Constraint | None = None,
    ) -> str:
        request_id = str(next(self._numbers))
        self.engine.submit(Request(request_id, tuple(prompt), params, adapter, constraint=constraint))
        return request_id

    def step(self) -> list[Delivery]:
        """One step, and its integrity. With nothing to compute yet, give the readers a moment, as a worker does."""
        delivered = self.engine.step()
        self.engine.check_integrity()
        if self.engine.stalled:
            time.sleep(0.002)
        return delivered

    def run(self) -> Mapping[str, Answer]:
        """Step until everything submitted has ended, checking integrity after each step."""
        outputs: dict[str, list[Output]] = {}
        while self.engine.scheduler.has_work:
            for request_id, output in self.step():
                outputs.setdefault(request_id, []).append(output)
        return {request_id: Answer.of(one) for request_id, one in outputs.items()}

    def close(self) -> None:
        self.engine.tiers.close()
