"""Who asks for which adapter: the popularity of adapters over a run of requests.

Owns the five distributions that multi-LoRA work measures with (Punica, arXiv 2310.18547; S-LoRA, arXiv 2311.03285).
Imports nothing but the standard library, so that tests of the engine can use it too.
"""

import random
from collections.abc import Sequence
from enum import StrEnum


class Popularity(StrEnum):
    """How requests spread over adapters.

    identical   every request asks for the same adapter
    distinct    every request asks for another adapter, in turn
    uniform     each request draws any adapter with equal probability
    zipf        the k-th most popular adapter is drawn with probability proportional to k^-1.5
    skewed      one adapter gets half of the requests, the others share the rest equally
    """

    IDENTICAL = "identical"
    DISTINCT = "distinct"
    UNIFORM = "uniform"
    ZIPF = "zipf"
    SKEWED = "skewed"


ZIPF_EXPONENT = 1.5


def weights(popularity: Popularity, adapters: int) -> list[float]:
    """The relative frequency of each adapter over a long run, most popular first; they sum to 1."""
    if adapters < 1:
        raise ValueError(f"A workload needs at least one adapter, not {adapters}.")
    raw = _raw_weights(popularity, adapters)
    return [weight / sum(raw) for weight in raw]


def _raw_weights(popularity: Popularity, adapters: int) -> Sequence[float]:
    match popularity:
        case Popularity.IDENTICAL:
            return [1.0] + [0.0] * (adapters - 1)
        case Popularity.ZIPF:
            return [rank**-ZIPF_EXPONENT for rank in range(1, adapters + 1)]
        case Popularity.SKEWED:
            return [float(max(adapters - 1, 1))] + [1.0] * (adapters - 1)
        case Popularity.DISTINCT | Popularity.UNIFORM:
            return [1.0] * adapters


def assign(popularity: Popularity, requests: int, adapters: int, seed: int = 0) -> list[int]:
    """The adapter index, in `range(adapters)`, that each of `requests` requests asks for.

    The same arguments give the same list. `identical` and `distinct` draw nothing.
    Raises ValueError where there is no adapter to ask for.
    """
    frequencies = weights(popularity, adapters)
    if popularity is Popularity.DISTINCT:
        return [request % adapters for request in range(requests)]
    return random.Random(seed).choices(range(adapters), weights=frequencies, k=requests)
