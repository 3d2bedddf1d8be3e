"""Puts an engine together for a loaded base.

Owns the choice of parts and their sizes. The only place that knows all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from adapters.bank import Bank
from adapters.device_quotas import DeviceQuota, DeviceQuotas
from adapters.residency import Residency
from adapters.stage import Stage, units_within
from adapters.store import BlobStore
from adapters.supply import Supply
from engine.blocks import BlockPool
from engine.engine import Engine, Limits
from engine.events import Observer, ignore
from engine.fairness import VirtualCounters
from engine.flash import BLOCK as GPU_BLOCK
from engine.flash import Flash
from engine.flash import find as find_flash
from engine.kv_cache import KVCache
from engine.recording import CudaGraphs, Recorder
from engine.runner import ModelRunner
from engine.scheduler import Scheduler
from engine.tiers import AdapterTiers
from loader.base import Base
from loader.plan import kv_spec

CPU_BLOCK = 16
CPU_BATCH = 256
"""Tokens in a step. On a CPU each costs about the same from a few hundred on, and everybody waits for a step that has
begun; on a GPU a step of few tokens costs its launches."""
GPU_BATCH = 2048
MAX_FETCHES = 4  # two for each reader of the supply: the next is there when one has ended


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine's sizes. `max_batch_tokens` bounds a step, and so how long a decoding request waits for a prompt."""

    num_blocks: int
    max_model_len: int
    adapter_device_bytes: int
    adapter_host_bytes: int
    block_size: int
    max_batch_tokens: int
    max_sequences: int = 64
    max_waiting: int = 512
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    device_quota: DeviceQuota = DeviceQuota()
    tenant_device_quotas: Mapping[str, DeviceQuota] = field(default_factory=dict)


def default_block_size(on_cuda: bool) -> int:
    """Tokens in a KV block: on a GPU FlashAttention reads larger ones."""
    return GPU_BLOCK if on_cuda else CPU_BLOCK


def default_batch_tokens(on_cuda: bool) -> int:
    return GPU_BATCH if on_cuda else CPU_BATCH


def build(
    base: Base, store: BlobStore, config: EngineConfig, observe: Observer = ignore, recorder: Recorder | None = None
) -> Engine:
    """An engine over `base` that reads adapters from `store`. Allocates the KV cache."""
    return maker(base, store, config, observe, recorder)()


def maker(
    base: Base, store: BlobStore, config: EngineConfig, observe: Observer = ignore, recorder: Recorder | None = None
) -> Callable[[], Engine]:
    """Makes engines, one to take over from another: each begins empty, on the same KV cache and wrapped linears.

    With a `recorder`, decode steps are replayed from recordings; the stage for them comes out of the adapters' budget.
    """
    cache = KVCache(kv_spec(base.model.config.to_dict()), config.num_blocks, config.block_size, base.dtype, base.device)
    bank = Bank(base.device, base.kernels, tuple(base.shape.linears))
    flash = _flash(base)
    runner = ModelRunner(base, cache, bank, flash)
    device_bytes = config.adapter_device_bytes
    if recorder is not None and (flash is not None or base.device.type == "cpu"):
        stage = _stage(base, bank, device_bytes)
        device_bytes -= stage.num_bytes
        longest = min(config.num_blocks, -(-config.max_model_len // config.block_size))
        runner.record_decoding(recorder, stage, config.max_sequences, longest)

    def make() -> Engine:
        runner.unmerge()
        bank.clear()
        pool = BlockPool(config.num_blocks, config.block_size)
        residency = Residency(
            device_bytes,
            config.adapter_host_bytes,
            max_fetches=MAX_FETCHES,
            quotas=DeviceQuotas(config.device_quota, config.tenant_device_quotas),
        )
        supply = Supply(store, bank, base.adapter_dtype, base.weight)
        return Engine(
            runner=runner,
            scheduler=Scheduler(
                pool,
                config.max_batch_tokens,
                config.max_sequences,
                counters=VirtualCounters(weights=config.tenant_weights),
            ),
            pool=pool,
            tiers=AdapterTiers(residency, supply, observe),
            decode=base.decode,
            eos=base.eos_token_ids,
            limits=Limits(config.max_model_len, config.max_waiting),
            observe=observe,
        )

    return make


def cuda_graphs(base: Base) -> Recorder | None:
    """What records decode steps on this base's device, if anything does."""
    return CudaGraphs(base.device) if base.device.type == "cuda" else None


def _flash(base: Base) -> Flash | None:
    """FlashAttention as this GPU has it. Without it a recording would gather the longest context in every step."""
    return find_flash(base.device, base.dtype) if base.device.type == "cuda" else None


def _stage(base: Base, bank: Bank, budget: int) -> Stage:
    linears, dtype = base.shape.linears, base.adapter_dtype
    return Stage(bank, linears, dtype, units_within(budget, linears.values(), dtype.itemsize))
