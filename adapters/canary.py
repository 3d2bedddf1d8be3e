"""Which of two versions a request gets while an alias splits its traffic.

Owns the split and its hash. Knows no database and no requests: whoever resolves gives the key that a choice sticks to.
"""

import hashlib
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Canary:
    """Version `number` gets the fraction `weight` of an alias's traffic, between 0 and 1, both excluded."""

    number: int
    weight: float


@dataclass(frozen=True, slots=True)
class Split(Generic[V]):
    """What a reference means: `stable`, and for the fraction `weight` of keys `canary`.

    `salt` is the alias and the canary. Another canary is thus tried on other keys, and a weight that grows keeps
    every key that had the canary before.
    """

    stable: V
    canary: V | None = None
    weight: float = 0.0
    salt: str = ""

    def pick(self, key: str | None) -> V:
        """The same for equal keys. Without a key, the stable version."""
        if self.canary is None or key is None or position(self.salt, key) >= self.weight:
            return self.stable
        return self.canary


def position(salt: str, key: str) -> float:
    """Where a key stands in [0, 1): uniform over keys, the same in every process and release."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)  # as many bits as a double has
