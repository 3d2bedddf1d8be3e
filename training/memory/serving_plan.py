"""Predicts the memory of serving the same base with such adapters.

Owns that sum. A server makes its own plan (loader/plan.py) from the memory that is free.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loader.anatomy import Anatomy
from loader.plan import DEVICE_RESERVE
from training.memory.grafts import Graft
from training.memory.weights import base_bytes


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """Bytes while serving in `itemsize` bytes a number. `adapters` is how many fit beside `requests` whole requests.

    `adapter` is None where there is none (a full fine-tune); `adapters` also where no limit is known.
    """

    base: int
    kv_per_token: int
    kv_per_request: int
    length: int
    requests: int
    adapter: int | None
    adapters: int | None
    reserve: int

    @property
    def fits(self) -> bool:
        """Whether base and requests leave room for an adapter; meaningful when there is a limit."""
        return self.adapters is None or self.adapters > 0


def serving_plan(
    anatomy: Anatomy,
    grafts: Sequence[Graft],
    *,
    length: int,
    requests: int,
    limit: int | None,
    quantized: bool,
    itemsize: int = 2,
) -> ServingPlan:
    """The plan for `requests` of `length` tokens at once within `limit` bytes. Adapters are held at their true rank."""
    base = base_bytes(anatomy, itemsize, quantized)
    token = 2 * anatomy.layers * anatomy.kv_width * itemsize
    adapter = sum(graft.parameters for graft in grafts) * itemsize or None
    room = None if limit is None else max(0, limit - base - DEVICE_RESERVE - requests * length * token)
    fitting = None if room is None or adapter is None else room // adapter
    return ServingPlan(base, token, length * token, length, requests, adapter, fitting, DEVICE_RESERVE)
