"""An engine without a model: tokens count upwards, adapters are sizes.

Owns the smallest runner and mover that keep their protocols, and a bench that puts the real engine between them.
The runner remembers which token each KV slot holds, so that a lost or stolen block shows as a wrong answer.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from adapters.device_quotas import DeviceQuotas
from adapters.errors import AdapterCorrupt, UnknownAdapter
from adapters.manifest import AdapterId
from adapters.mover import Arrival
from adapters.residency import Residency
from engine.blocks import BlockPool
from engine.constraint import Constraint
from engine.detokenize import Decode
from engine.engine import Delivery, Engine, Limits
from engine.events import Event
from engine.fairness import VirtualCounters
from engine.result import ChunkResult
from engine.scheduler import Chunk, Scheduler, StepPlan
from engine.sequence import FinishReason, Output, Request, SamplingParams, TokenLogprob
from engine.tiers import AdapterTiers

VOCAB = 1000
EOS = 999


def named(name: str) -> AdapterId:
    return AdapterId(name)


def letters(ids: Sequence[int]) -> str:
    """Tokens as the letters a to z, round and round."""
    return "".join(chr(ord("a") + token % 26) for token in ids)


@dataclass
class FakeRunner:
    """Emits the last token plus one (plus the adapter's name's length), read back from the slots it was written to."""

    block_size: int
    raises: set[str] = field(default_factory=set)  # requests whose step blows up
    overflows: set[str] = field(default_factory=set)  # requests whose logits are not finite
    refuses_merge: Exception | None = None
    delay_s: float = 0.0  # how long a step takes
    merged: AdapterId | None = None
    plans: list[StepPlan] = field(default_factory=list)
    slots: dict[tuple[int, int], tuple[int, AdapterId | None, str]] = field(default_factory=dict)

    def execute(self, plan: StepPlan) -> list[ChunkResult]:
        self.plans.append(plan)
        time.sleep(self.delay_s)
        if any(chunk.sequence.id in self.raises for chunk in plan.chunks):
            raise RuntimeError("the device is on fire")
        return [self._result(chunk) for chunk in plan.chunks]

    def merge(self, adapter: AdapterId) -> None:
        if self.refuses_merge is not None:
            raise self.refuses_merge
        self.merged = adapter

    def unmerge(self) -> None:
        self.merged = None

    def _result(self, chunk: Chunk) -> ChunkResult:
        sequence, params = chunk.sequence, chunk.sequence.params
        for position in range(chunk.start, chunk.stop):
            self.slots[self._slot(chunk, position)] = self._entry(chunk, position)
        for position in range(chunk.stop):
            assert self.slots[self._slot(chunk, position)] == self._entry(chunk, position), "a stranger's block"
        stop = min(chunk.stop, sequence.prompt_len - 1)
        asked = range(chunk.start, stop) if params.prompt_logprobs is not None else range(0)
        prompt = tuple(TokenLogprob(sequence.tokens[at + 1], -float(at)) for at in asked)
        if not chunk.catches_up or params.max_tokens == 0:
            return ChunkResult(prompt=prompt)
        if sequence.id in self.overflows:
            return ChunkResult(prompt=prompt, finite=False)
        token = next_token(sequence.tokens[-1], sequence.adapter)
        return ChunkResult(token, None if params.logprobs is None else TokenLogprob(token, -1.0), prompt)

    def _slot(self, chunk: Chunk, position: int) -> tuple[int, int]:
        return chunk.sequence.blocks[position // self.block_size], position % self.block_size

    def _entry(self, chunk: Chunk, position: int) -> tuple[int, AdapterId | None, str]:
        return chunk.sequence.tokens[position], chunk.sequence.adapter, chunk.sequence.request.tenant


def next_token(last: int, adapter: AdapterId | None) -> int:
    return (last + 1 + len(adapter or "")) % VOCAB


def expected_tokens(request: Request) -> list[int]:
    """What `FakeRunner` makes of a request that nothing stops."""
    tokens = list(request.prompt)
    for _ in range(request.params.max_tokens):
        tokens.append(next_token(tokens[-1], request.adapter))
    return tokens[len(request.prompt) :]


@dataclass
class FakeMover:
    """Adapters with the given sizes. A read ends when the test says so, or at once when `instant`."""

    sizes: Mapping[AdapterId, int]
    instant: bool = True
    corrupt: set[AdapterId] = field(default_factory=set)
    unplaceable: set[AdapterId] = field(default_factory=set)
    reading: dict[AdapterId, Callable[[Arrival], None]] = field(default_factory=dict)
    host: set[AdapterId] = field(default_factory=set)
    device: set[AdapterId] = field(default_factory=set)
    reads: list[AdapterId] = field(default_factory=list)
    closed: bool = False

    def size(self, adapter: AdapterId) -> int:
        if adapter not in self.sizes:
            raise UnknownAdapter(f"{adapter} is not in the store.")
        return self.sizes[adapter]

    def fetch(self, adapter: AdapterId, arrived: Callable[[Arrival], None]) -> None:
        assert adapter not in self.host and adapter not in self.reading
        self.reads.append(adapter)
        self.reading[adapter] = arrived
        if self.instant:
            self.arrive(adapter)

    def arrive(self, adapter: AdapterId) -> None:
        """The read ends: well, or with AdapterCorrupt."""
        arrived = self.reading.pop(adapter)
        if adapter in self.corrupt:
            arrived(Arrival(adapter, 0.001, AdapterCorrupt(f"{adapter} has changed on disk.")))
        else:
            self.host.add(adapter)
            arrived(Arrival(adapter, 0.001))

    def drop_host(self, adapter: AdapterId) -> None:
        self.host.discard(adapter)

    def place(self, adapter: AdapterId) -> None:
        assert adapter in self.host and adapter not in self.device
        if adapter in self.unplaceable:
            raise MemoryError("out of device memory")
        self.device.add(adapter)

    def drop_device(self, adapter: AdapterId) -> None:
        self.device.remove(adapter)

    def close(self) -> None:
        self.closed = True


class Bench:
    """The real engine between a fake runner and a fake mover; checks every invariant after every step."""

    def __init__(
        self,
        *,
        blocks: int = 64,
        block_size: int = 4,
        batch_tokens: int = 16,
        sequences: int = 4,
        waiting: int = 100,
        model_len: int = 200,
        adapters: Mapping[str, int] | None = None,
        device: int = 100,
        host: int = 1000,
        patience: int = 64,
        fetches: int = 100,
        counters: VirtualCounters | None = None,
        quotas: DeviceQuotas | None = None,
        decode: Decode = letters,
    ) -> None:
        self.runner = FakeRunner(block_size)
        self.mover = FakeMover({named(name): size for name, size in (adapters or {}).items()})
        self.events: list[Event] = []
        self.outputs: dict[str, list[Output]] = {}
        pool = BlockPool(blocks, block_size)
        observe = self.events.append
        self.engine = Engine(
            runner=self.runner,
            scheduler=Scheduler(pool, batch_tokens, sequences, patience, counters),
            pool=pool,
            tiers=AdapterTiers(Residency(device, host, fetches, quotas), self.mover, observe),
            decode=decode,
            eos={EOS},
            limits=Limits(model_len, waiting),
            observe=observe,
        )

    def submit(
        self,
        id: str,
        prompt: Iterable[int] = (1, 2, 3),
        *,
        adapter: str | None = None,
        tenant: str = "",
        params: SamplingParams | None = None,
        max_tokens: int = 4,
        constraint: Constraint | None = None,
    ) -> Request:
        chosen = params or SamplingParams(max_tokens=max_tokens)
        request = Request(id, tuple(prompt), chosen, None if adapter is None else named(adapter), tenant, constraint)
        self.engine.submit(request)
        self.outputs[id] = []
        return request

    def step(self) -> StepPlan | None:
        """One step; the plan that was computed, None if there was none."""
        before = len(self.runner.plans)
        self.collect(self.engine.step())
        self.engine.check_integrity()
        assert self.mover.device == {id for id in self.mover.sizes if self.engine.tiers.ready(id)}
        return self.runner.plans[-1] if len(self.runner.plans) > before else None

    def collect(self, deliveries: Iterable[Delivery]) -> None:
        for request_id, output in deliveries:
            self.outputs[request_id].append(output)

    def run(self, steps: int = 1000) -> int:
        """Step until nothing is left; how many steps that took. Fails beyond `steps`."""
        for taken in range(steps):
            if not self.engine.scheduler.has_work:
                return taken
            self.step()
        raise AssertionError(f"there is still work after {steps} steps")

    def run_until(self, id: str, steps: int = 200) -> None:
        """Step until request `id` has ended."""
        for _ in range(steps):
            if self.reason(id) is not None:
                return
            self.step()
        raise AssertionError(f"{id} has not ended after {steps} steps")

    def idle(self) -> bool:
        return not self.engine.has_work

    def stalled(self) -> bool:
        return self.engine.stalled

    def tokens(self, id: str) -> list[int]:
        return [token for output in self.outputs[id] for token in output.token_ids]

    def text(self, id: str) -> str:
        return "".join(output.text for output in self.outputs[id])

    def reason(self, id: str) -> FinishReason | None:
        """The one reason a request ended with, None while it runs."""
        reasons = [output.finish_reason for output in self.outputs[id] if output.finish_reason is not None]
        assert len(reasons) <= 1 and (not reasons or self.outputs[id][-1].finish_reason is not None)
        return reasons[0] if reasons else None

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]
