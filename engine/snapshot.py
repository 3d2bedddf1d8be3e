"""What others see of an engine between two steps, as frozen data that any thread may read.

Knows the engine; knows no thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from adapters.manifest import AdapterId
from engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Resident:
    """An adapter above disk. `tier` is `device`, `host` or `merged`."""

    id: AdapterId
    tier: str
    bytes: int
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine after its latest step. Prefix figures count prompt tokens since the start."""

    running: int = 0
    waiting: int = 0
    blocks_total: int = 0
    blocks_used: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    device_bytes_used: int = 0
    device_bytes_total: int = 0
    host_bytes_used: int = 0
    host_bytes_total: int = 0
    running_adapters: tuple[AdapterId, ...] = ()
    waiting_adapters: tuple[AdapterId, ...] = ()
    merged: AdapterId | None = None


def stats_of(engine: Engine) -> EngineStats:
    scheduler, residency = engine.scheduler, engine.tiers.residency
    return EngineStats(
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        blocks_total=engine.pool.num_blocks,
        blocks_used=engine.pool.num_used,
        prefix_queries=scheduler.prefix_tokens_asked,
        prefix_hits=scheduler.prefix_tokens_found,
        device_bytes_used=residency.device_used,
        device_bytes_total=residency.device_budget,
        host_bytes_used=residency.host_used,
        host_bytes_total=residency.host_budget,
        running_adapters=tuple(sorted(scheduler.running_adapters())),
        waiting_adapters=scheduler.wanted_adapters(),
        merged=engine.merged,
    )


def residents_of(engine: Engine) -> Callable[[], tuple[Resident, ...]]:
    """What lists every adapter that is above disk now, most recently used first, whenever it is called.

    Listing thousands takes milliseconds, for which no step should wait.
    """
    residency, merged = engine.tiers.residency, engine.merged
    above, pinned = tuple(residency.residents()), residency.pinned
    return cache(
        lambda: tuple(
            Resident(adapter, "merged" if adapter == merged else tier.value, size, adapter in pinned)
            for adapter, tier, size in above
        )
    )
