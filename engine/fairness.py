"""Whose turn it is: virtual token counters (VTC; Sheng et al., OSDI'24, arXiv 2401.00588).

Owns one counter for each tenant, what work costs, and the order in which waiting sequences have their turn. Knows
neither blocks nor adapters' whereabouts, and no torch; the scheduler says what was done, and asks who comes next.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from itertools import chain, zip_longest

from engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Prices:
    """What a tenant pays: for a prompt token that is computed, for a token that is sampled, for a byte of an adapter
    that is brought one tier up. 64 KiB take about as long as a prompt token does. Cached prompt tokens are free."""

    input: float = 1.0
    output: float = 2.0
    adapter_byte: float = 1 / 65536

    def price_of(self, prompt_len: int, start: int, stop: int) -> float:
        """The price of computing the positions `start` to `stop`. From the prompt's last on, each samples a token."""
        prompt = max(0, min(stop, prompt_len) - start)
        sampled = max(0, stop - max(start, prompt_len - 1))
        return self.input * prompt + self.output * sampled


class VirtualCounters:
    """A counter `c[i]` of the weighted service that each tenant i had: `c[i] += price / weight[i]`.

    The smallest counter among those who wait has its turn, so nothing stays idle while somebody can use it. A tenant
    that waits anew is lifted to the smallest counter of those who wait already or, if nobody does, to that of the
    last who came in: idle time is no credit. Nor is the time in which an adapter is read: whoever is passed because
    its adapters are not there is lifted to the one who passes.

    **Bound.** Let L be the longest prompt, N the longest answer, S the seats of the batch, w_p and w_q the prices of
    input and output, and let f and g both be backlogged over an interval: with a sequence waiting that only seats,
    tokens or blocks keep out. The weighted service W of the two in that interval then differs by at most

        |W_f - W_g| <= U/weight_f + U/weight_g,    U = w_p * L + w_q * S * N  (<= w_q * M,  M = S * (L + N)),

    which with equal weights is the paper's `2 max(w_p L_input, w_q M)`, M the tokens that a batch may come to.
    *Proof.* When f comes in, no counter of those who wait is smaller. Until f comes in again it pays for no more than
    it has in the batch: at most S answers, and one prompt, because nobody comes in while another prompt of the same
    tenant is incomplete (it has all of the step's tokens). The smallest counter of those who wait never falls, since
    whoever joins them is lifted to it. So at any time c_f - c_g <= U/weight_f, likewise c_g - c_f, and a difference
    over an interval is at most that at its end plus that at its beginning. A preempted sequence comes in anew, and
    pays for no position twice. Adapters are paid for when they are moved, in turn or not: that adds `adapter_byte`
    times the bytes that were moved for f, or for g, since it last came in.
    """

    def __init__(self, prices: Prices | None = None, weights: Mapping[str, float] | None = None) -> None:
        self.prices = prices or Prices()
        self._weights = dict(weights or {})
        assert all(weight > 0 for weight in self._weights.values())
        self._counters: dict[str, float] = {}
        self._last_admitted: str | None = None

    def counter(self, tenant: str) -> float:
        return self._counters.get(tenant, 0.0)

    def charge(self, tenant: str, price: float) -> None:
        self._counters[tenant] = self.counter(tenant) + price / self._weights.get(tenant, 1.0)

    def enqueued(self, tenant: str, waiting: Collection[str]) -> None:
        """A sequence of `tenant` joins the queue, in which those of the tenants `waiting` are already."""
        if waiting and tenant not in waiting:
            self._lift(tenant, min(map(self.counter, waiting)))
        elif not waiting and self._last_admitted is not None:
            self._lift(tenant, self.counter(self._last_admitted))

    def admitted(self, tenant: str, passed: Iterable[str]) -> None:
        """A sequence of `tenant` came into the batch, ahead of those of the tenants `passed`, which could not."""
        for other in passed:
            self._lift(other, self.counter(tenant))
        self._last_admitted = tenant

    def in_turn(self, waiting: Iterable[Sequence], running: Container[str]) -> Iterator[Sequence]:
        """Everyone who waits: the smallest counter's next, and within a tenant first come, first served.

        Of equal counters, those without anything `running` go first, then who has waited longest. Charge whom you let
        in before you ask for the next: it is looked at again.
        """
        queues = _by_tenant(waiting)
        turns = [(self.counter(t), t in running, queue[0][0], t) for t, queue in queues.items()]
        heapify(turns)
        while turns:
            _, served, _, tenant = turns[0]
            queue = queues[tenant]
            yield queue.popleft()[1]
            if queue:
                heapreplace(turns, (self.counter(tenant), served, queue[0][0], tenant))
            else:
                heappop(turns)

    def soonest(self, waiting: Iterable[Sequence]) -> Iterator[Sequence]:
        """Everyone who waits, one of each tenant after the other: about how they will come in, for loading ahead."""
        queues = _by_tenant(waiting)
        rounds = zip_longest(*(queues[tenant] for tenant in sorted(queues, key=self.counter)))
        return (placed[1] for placed in chain.from_iterable(rounds) if placed is not None)

    def _lift(self, tenant: str, floor: float) -> None:
        self._counters[tenant] = max(self.counter(tenant), floor)


def _by_tenant(waiting: Iterable[Sequence]) -> dict[str, deque[tuple[int, Sequence]]]:
    """Each tenant's sequences with their places in the queue, the tenants in the order in which their first came."""
    queues: dict[str, deque[tuple[int, Sequence]]] = defaultdict(deque)
    for place, sequence in enumerate(waiting):
        queues[sequence.tenant].append((place, sequence))
    return queues
