"""The seam between deciding about tiers and moving bytes between them.

Owns the protocol and its messages; imports no torch, so that the engine can be driven by a fake.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from adapters.manifest import AdapterId


@dataclass(frozen=True, slots=True)
class Arrival:
    """A read has ended after `seconds`; `error` says why it brought nothing."""

    adapter: AdapterId
    seconds: float
    error: Exception | None = None


class Mover(Protocol):
    """Does what an AdapterPlan says, one move at a time."""

    def size(self, adapter: AdapterId) -> int:
        """Bytes the adapter takes in memory. Raises UnknownAdapter if the store has no such blob."""

    def fetch(self, adapter: AdapterId, arrived: Callable[[Arrival], None]) -> None:
        """Start reading it into host memory; `arrived` is called from another thread."""

    def drop_host(self, adapter: AdapterId) -> None: ...

    def place(self, adapter: AdapterId) -> None:
        """Bring it from host memory to the device."""

    def drop_device(self, adapter: AdapterId) -> None: ...

    def close(self) -> None: ...
