"""What happened in the engine, as frozen facts for whoever counts them.

Owns the events; knows no metrics library. An observer is called on the engine's thread and must be quick.
"""

from collections.abc import Callable
from dataclasses import dataclass

from adapters.manifest import AdapterId
from engine.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class Admitted:
    """`request` is its id. It waited `load_s` seconds for its adapter, then `queue_s` for room in a batch."""

    request: str
    adapter: AdapterId | None
    tier: str
    queue_s: float
    load_s: float
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class FirstToken:
    request: str
    adapter: AdapterId | None
    ttft_s: float


@dataclass(frozen=True, slots=True)
class NextToken:
    adapter: AdapterId | None
    gap_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    request: str
    adapter: AdapterId | None
    reason: FinishReason
    generated_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AdapterLoaded:
    """`tier` is the one it was read from: `disk` or `host`."""

    adapter: AdapterId
    tier: str
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class AdapterEvicted:
    """`tier` is the one it left: `host` or `device`."""

    adapter: AdapterId
    tier: str


@dataclass(frozen=True, slots=True)
class AdapterFailed:
    """It could not be brought onto the device; `code` is what its requests are told: `adapter_corrupt` or another."""

    adapter: AdapterId
    code: str


@dataclass(frozen=True, slots=True)
class Preempted:
    request: str
    adapter: AdapterId | None


@dataclass(frozen=True, slots=True)
class StepDone:
    seconds: float
    tokens: int
    sequences: int


Event = (
    Admitted | FirstToken | NextToken | Finished | AdapterLoaded | AdapterEvicted | AdapterFailed | Preempted | StepDone
)
Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer that counts nothing."""
