"""Who asks for which adapter: the popularity of adapters over a run of requests.

Owns the five distributions that multi-LoRA work measures with (Punica, arXiv 2310.18547; S-LoRA, arXiv 2311.03285).
Imports nothing but the standard library, so that tests of the engine can use it too.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Popularity(StrEnum):
    """How requests spread over adapters.

    identical   every request asks for the same adapter
    distinct    every request asks for another adapter, in turn
    uniform     each request draws any adapter with equal probability
    zipf        the k-th most popular adapter is drawn with probability proportional to k^-1.5, or another exponent
    skewed      one adapter gets half of the requests, the others share the rest equally
    """

    IDENTICAL = "identical"
    DISTINCT = "distinct"
    UNIFORM = "uniform"
    ZIPF = "zipf"
    SKEWED = "skewed"


ZIPF_EXPONENT = 1.5


@dataclass(frozen=True, slots=True)
class Mix:
    """A popularity as a command takes it: its name, or `zipf:1.2` for another exponent."""

    popularity: Popularity
    exponent: float = ZIPF_EXPONENT

    def __str__(self) -> str:
        zipf = self.popularity is Popularity.ZIPF
        return f"{self.popularity}:{self.exponent:g}" if zipf else str(self.popularity)

    @classmethod
    def parse(cls, text: str) -> "Mix":
        """Raises ValueError for anything else."""
        name, colon, exponent = text.partition(":")
        if name not in set(Popularity):
            raise ValueError(f"Write one of {', '.join(Popularity)}, or zipf:1.2 for another exponent.")
        popularity = Popularity(name)
        if not colon:
            return cls(popularity)
        if popularity is not Popularity.ZIPF:
            raise ValueError(f"Only zipf takes an exponent, not {name}.")
        if not re.fullmatch(r"\d+(\.\d+)?", exponent):
            raise ValueError("Write the exponent as a number, as in zipf:1.2.")
        return cls(popularity, float(exponent))


def weights(popularity: Popularity, adapters: int, exponent: float = ZIPF_EXPONENT) -> list[float]:
    """The relative frequency of each adapter over a long run, most popular first; they sum to 1."""
    if adapters < 1:
        raise ValueError(f"A workload needs at least one adapter, not {adapters}.")
    raw = _raw_weights(popularity, adapters, exponent)
    return [weight / sum(raw) for weight in raw]


def _raw_weights(popularity: Popularity, adapters: int, exponent: float) -> Sequence[float]:
    match popularity:
        case Popularity.IDENTICAL:
            return [1.0] + [0.0] * (adapters - 1)
        case Popularity.ZIPF:
            return [rank**-exponent for rank in range(1, adapters + 1)]
        case Popularity.SKEWED:
            return [float(max(adapters - 1, 1))] + [1.0] * (adapters - 1)
        case Popularity.DISTINCT | Popularity.UNIFORM:
            return [1.0] * adapters


def assign(
    popularity: Popularity, requests: int, adapters: int, seed: int = 0, exponent: float = ZIPF_EXPONENT
) -> list[int]:
    """The adapter index, in `range(adapters)`, that each of `requests` requests asks for.

    The same arguments give the same list. `identical` and `distinct` draw nothing.
    Raises ValueError where there is no adapter to ask for.
    """
    frequencies = weights(popularity, adapters, exponent)
    if popularity is Popularity.DISTINCT:
        return [request % adapters for request in range(requests)]
    return random.Random(seed).choices(range(adapters), weights=frequencies, k=requests)
