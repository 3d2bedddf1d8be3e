"""Targets that answer at once, for testing what measures them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.api import CompletionRequest
from bench.arrivals import Arrivals
from bench.errors import BenchError
from bench.load import LoadResult, RequestTiming


@dataclass
class FakeTarget:
    """Gives each measurement the next of `rates`, over and over; fails at the first request for `fails_at`.

    Answers have the tokens in `answers` under their model, else one for each character of the model's name.
    """

    name: str
    adapters: frozenset[str] = frozenset()
    rates: Sequence[float] = (100.0,)
    fails_at: str | None = None
    base_id: str = "base"
    pid: int | None = None
    answers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    seen: list[Sequence[CompletionRequest]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def run(self, requests: Sequence[CompletionRequest], arrivals: Arrivals, seed: int) -> LoadResult:
        self.log.append(self.name)
        if self.fails_at in {request.model for request in requests}:
            raise BenchError("out of memory")
        rate = self.rates[len(self.asked) % len(self.rates)]
        self.asked.append(requests[0].model)
        self.seen.append(requests)
        timings = (
            RequestTiming(ttft_s=0.5, gaps_s=(0.01, 0.03), tokens=10, ids=self.ids(request)) for request in requests
        )
        return LoadResult(10 * len(requests) / rate, tuple(timings))

    def ids(self, request: CompletionRequest) -> tuple[int, ...]:
        answer = self.answers.get(request.model, [ord(letter) for letter in request.model])
        return tuple(answer[place % len(answer)] for place in range(request.output_tokens))
