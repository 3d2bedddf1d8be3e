"""Targets that answer at once, for testing what measures them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.api import Ask
from bench.arrivals import Arrivals
from bench.errors import BenchError
from bench.load import Run, Trace


@dataclass
class FakeTarget:
    """Gives each measurement the next of `rates`, over and over; fails at the first request for `fails_at`."""

    name: str
    adapters: frozenset[str] = frozenset()
    rates: Sequence[float] = (100.0,)
    fails_at: str | None = None
    base_id: str = "base"
    pid: int | None = None
    asked: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def run(self, requests: Sequence[Ask], arrivals: Arrivals, seed: int) -> Run:
        self.log.append(self.name)
        if self.fails_at in {ask.model for ask in requests}:
            raise BenchError("out of memory")
        rate = self.rates[len(self.asked) % len(self.rates)]
        self.asked.append(requests[0].model)
        return Run(10 / rate, (Trace(ttft_s=0.5, gaps_s=(0.01, 0.03), tokens=10),))
