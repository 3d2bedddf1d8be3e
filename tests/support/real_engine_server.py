"""The checked server of tests/hostile with a real engine behind it, over a tiny random Llama of the same shapes.

Owns the base and the wiring; the broken uploads, written for those shapes, fit it as they are.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.manifest import AdapterId
from adapters.provenance import ServedBase
from adapters.store import BlobStore
from engine.build import EngineConfig, maker
from engine.engine import Engine
from engine.result import ChunkResult
from engine.runner import ModelRunner
from engine.scheduler import StepPlan
from engine.worker import EngineWorker
from loader.base import Base, load
from loader.fingerprint import fingerprint
from loader.source import resolve
from server.grammars.compiler import Compiler
from server.grammars.vocabulary import vocabulary
from server.ports import Limits
from server.tokens import HubTokenizer
from tests.support.adapters import write_adapter
from tests.support.checked_server import CheckedServer
from tests.support.http import serve
from tests.support.invariants import Invariants
from tests.support.models import SHAPE as SIZES
from tests.support.models import tiny_tokenizer
from tests.support.real_engine_watch import RealEngineWatch
from tests.support.server_rig import make_rig
from tests.support.surroundings import at_home

LOUD = 0.3
"""The scale of adapters that must be heard in eight tokens."""
CONTEXT, BLOCK = 256, 4


class Fragile:
    """The real runner, until it is told to break. Counts who was preempted."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.broken = False
        self.preempted = 0
        self._resting = 0

    def rest(self, steps: int) -> None:
        """The next steps take 50 ms more each: an answer is still under way when a busy machine asks for more."""
        self._resting = steps

    def execute(self, plan: StepPlan) -> list[ChunkResult]:
        if self._resting:
            self._resting -= 1
            time.sleep(0.05)
        self.preempted += len(plan.preempted)
        if self.broken:
            raise RuntimeError("the device is on fire")
        return self._runner.execute(plan)

    def merge(self, adapter: AdapterId) -> None:
        self._runner.merge(adapter)

    def unmerge(self) -> None:
        self._runner.unmerge()


@dataclass(frozen=True)
class RealEngineServer(CheckedServer):
    """A server, and the engine behind it. When the engine fails, the next one waits until `next` is set, as it is."""

    base: Base
    worker: EngineWorker
    runner: Fragile
    watch: RealEngineWatch
    next: Event

    def add(self, folder: Path, name: str, seed: int = 0, rank: int = 4) -> str:
        """A version that is loud, uploaded; its id."""
        made = write_adapter(folder / f"{name}-{seed}", self.base.shape, seed=seed, rank=rank, scale=LOUD)
        reply = self.upload(made, name)
        assert reply.status_code == 201, reply.text
        id: str = reply.json()["id"]
        return id


def tiny_llama(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Base:
    """`tests.support.checked_server.SHAPE` as a model with random weights, in float32."""
    sizes = dict(SIZES) | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    torch.manual_seed(20)
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
    model.save_pretrained(folder / "tiny-llama")
    (tokenizer or tiny_tokenizer()).save_pretrained(folder / "tiny-llama")
    return load(resolve(str(folder / "tiny-llama"), folder), dtype="float32")


@contextlib.contextmanager
def real_engine_server(
    folder: Path,
    device_bytes: int = 1 << 20,
    host_bytes: int = 4 << 20,
    blocks: int = 256,
    context: int = CONTEXT,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Iterator[RealEngineServer]:
    """A live server over a real engine with a canary, and its invariants."""
    base = tiny_llama(folder / "base", tokenizer)
    served = ServedBase(base.shape, lambda: fingerprint(base.source.path, None))
    hub = HubTokenizer(base.tokenizer, base.model.config.vocab_size)
    server = folder / "server"
    store = BlobStore(server / "data" / "blobs")
    config = EngineConfig(blocks, context, device_bytes, host_bytes, block_size=BLOCK, max_batch_tokens=64)
    make = maker(base, store, config)
    engine, waiting = make(), Event()
    real = engine._runner
    assert isinstance(real, ModelRunner)
    engine._runner = runner = Fragile(real)
    waiting.set()

    def remake() -> Engine:
        assert waiting.wait(20)
        following = make()
        following._runner = runner
        return following

    worker = EngineWorker(engine, remake)
    rig = make_rig(
        server,
        worker,  # type: ignore[arg-type]  # a rig usually has the fake one
        limits=Limits(context, idle_s=5),
        base=served,
        tokenizer=hub,
        grammars=Compiler(
            lambda: vocabulary(base.tokenizer.backend_tokenizer, base.model.config.vocab_size, base.eos_token_ids)
        ),
        store=store,
    )
    canary, _ = rig.catalog.add_directory("canary", write_adapter(folder / "canary", base.shape, seed=99, scale=LOUD))
    with at_home(folder), serve(rig.app) as live, live.client() as http:
        live.call(_start(worker))

        def forget(id: AdapterId) -> None:
            asyncio.run_coroutine_threadsafe(worker.forget(id), live.loop)

        rig.catalog.on_forgotten = forget
        watch = RealEngineWatch(base, worker, real, rig, live, canary.name)
        yield RealEngineServer(
            rig, live, http, Invariants(rig, http, canary, watch), base, worker, runner, watch, waiting
        )
        live.call(worker.stop(1))
    rig.registry.close()


async def _start(worker: EngineWorker) -> None:
    worker.start()
