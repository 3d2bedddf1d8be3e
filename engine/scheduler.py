"""Who computes which tokens in the next step.

Owns the waiting and running queues, and through them every sequence's blocks. There is no prefill phase: a
sequence catches up to its tokens, some at a time (chunked prefill, arXiv 2308.16369). Knows no torch; adapters
are only ids that may or may not be ready.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Protocol

from adapters.device_quotas import AdapterUse
from adapters.manifest import AdapterId
from engine.blocks import BlockPool, prefix_hashes
from engine.fairness import VirtualCounters
from engine.sequence import Sequence, Status

MULTI_TENANT_STEPS = 1000
"""Steps for which prompts stay short after several tenants were in the batch: a minute or two."""
PROMPT_BUDGET_DIVISOR = 4
"""Beside sequences that decode, prompts then get one in so many of a step's tokens."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a sequence, from position `start`, to be computed in one step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def catches_up(self) -> bool:
        """Whether the last of these tokens is the sequence's last, so that a new one is to be sampled."""
        return self.stop == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, decided. `admitted` are the sequences that came in with it; `preempted` lost their blocks."""

    chunks: tuple[Chunk, ...]
    admitted: tuple[Sequence, ...] = ()
    preempted: tuple[Sequence, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)


class Adapters(Protocol):
    """What a step may know of them."""

    def admits(self, use: AdapterUse, /) -> bool:
        """Whether it is on the device, and the tenant may use it."""

    def loading(self, adapter: AdapterId, /) -> bool:
        """Whether it is being read from disk, which no eviction would speed up."""

    def needs_room(self, use: AdapterUse, /) -> bool:
        """Whether others must leave for it; else it is being read, or its own tenant's quota is full."""

    @property
    def must_drain(self) -> bool:
        """Whether no sequence with an adapter may be admitted, so that adapters on the device can leave."""


@dataclass(slots=True)
class _Draft:
    """A step in the making. `budget` is what is left of its tokens."""

    budget: int
    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)


class Scheduler:
    """The tenant that had least goes first, and within a tenant who came first; but nobody waits behind an adapter that
    is still loading.

    Running sequences go first. When blocks run out, the sequence that came last gives its own back and is
    recomputed later. A waiting sequence is overtaken at most `patience` times for want of room; then nobody with an
    adapter passes it, so the running ones drain and its adapter is placed. One that is being read holds up nobody, and
    one whose tenant has its full quota on the device holds up its own tenant alone.

    A tenant that has nothing in the batch, and whose turn it is, waits for nobody to end: it goes before long prompts,
    and if it finds no seat or no blocks, the tenant that has most in the batch takes its latest sequence back, as long
    as it keeps one. Its first step is no longer than it must be: prompts of those who are there pause for it, and so
    does a tenant that has more in the batch than everybody else, though never twice in a row. And as long as it is not
    long since there were several tenants, prompts are computed in short pieces beside those who decode, for whoever
    comes next waits until the step ends.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_batch_tokens: int,
        max_sequences: int,
        patience: int = 64,
        counters: VirtualCounters | None = None,
    ) -> None:
        self._pool = pool
        self._max_batch_tokens = max_batch_tokens
        self._max_sequences = max_sequences
        self._patience = patience
        self._overtaken: dict[str, int] = {}
        self._paused_latest = False  # whether a tenant had to pause in the latest step
        self._steps_alone = MULTI_TENANT_STEPS  # steps since there were several tenants in the batch
        self.counters = counters or VirtualCounters()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.prefix_tokens_asked = 0
        self.prefix_tokens_found = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def uses(self) -> set[AdapterUse]:
        """What runs, and for whom."""
        return {
            AdapterUse(sequence.adapter, sequence.tenant) for sequence in self.running if sequence.adapter is not None
        }

    def wants(self) -> tuple[AdapterUse, ...]:
        """The adapters of those who wait, soonest first, as far as a few full batches reach."""
        ahead = islice(self.counters.soonest(self.waiting), 4 * self._max_sequences)
        uses = (AdapterUse(sequence.adapter, sequence.tenant) for sequence in ahead if sequence.adapter is not None)
        return tuple(dict.fromkeys(uses))

    def running_adapters(self) -> set[AdapterId]:
        return {sequence.adapter for sequence in self.running if sequence.adapter is not None}

    def wanted_adapters(self) -> tuple[AdapterId, ...]:
        return tuple(dict.fromkeys(use.adapter for use in self.wants()))

    def num_waiting(self, tenant: str) -> int:
        return sum(sequence.tenant == tenant for sequence in self.waiting)

    def add(self, sequence: Sequence) -> None:
        self._note_enqueued(sequence)
        self.waiting.append(sequence)

    def charge_moves(self, moved: Mapping[AdapterId, int]) -> None:
        """Charge the bytes of adapters that are on their way to the tenant that will use each first.

        What nobody waits for, a pin or a warm start, is free.
        """
        unpaid = dict(moved)
        for sequence in self.counters.soonest(self.waiting) if unpaid else ():
            if sequence.adapter is not None and sequence.adapter in unpaid:
                price = self.counters.prices.adapter_byte * unpaid.pop(sequence.adapter)
                self.counters.charge(sequence.tenant, price)

    def schedule(self, adapters: Adapters) -> StepPlan:
        """What the next step computes; `commit` after computing it.

        Mutates: admits and preempts sequences, gives them blocks or takes them back, and charges their tenants.
        """
        draft = _Draft(self._max_batch_tokens)
        decoding = [sequence for sequence in self.running if sequence.remaining == 1]
        prompts = [sequence for sequence in self.running if sequence.remaining > 1]
        self._continue(draft, decoding)  # a long prompt must not hold up decoding
        if self.running and not draft.preempted:
            self._admit(draft, adapters, newcomers=True)
        self._steps_alone = 0 if len({sequence.tenant for sequence in self.running}) > 1 else self._steps_alone + 1
        self._paused_latest = bool(draft.admitted) and not self._paused_latest
        if self._paused_latest:
            return self._to_plan(draft, paused=self._majority_tenant())
        if draft.chunks and self._steps_alone < MULTI_TENANT_STEPS:
            draft.budget = min(draft.budget, max(1, self._max_batch_tokens // PROMPT_BUDGET_DIVISOR))
        self._continue(draft, sorted(prompts, key=lambda sequence: self.counters.counter(sequence.tenant)))
        if len(self.running) < self._max_sequences and not draft.preempted:
            self._admit(draft, adapters)
        return self._to_plan(draft)

    def commit(self, plan: StepPlan) -> None:
        """The planned tokens are in the cache now: count them, and let full blocks be found by others."""
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.stop
            sequence.num_charged = max(sequence.num_charged, chunk.stop)
            first, end = chunk.start // self._pool.block_size, chunk.stop // self._pool.block_size
            if end > first:
                self._extend_hashes(sequence, chunk.stop)
            for index in range(first, end):
                self._pool.publish(sequence.blocks[index], sequence.block_hashes[index])

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence.is_running:
            self.running.remove(sequence)
            self._free(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        self._overtaken.pop(sequence.id, None)
        sequence.status = Status.FINISHED

    def check_integrity(self) -> None:
        """Assert that the pool's references are exactly what the running sequences hold."""
        self._pool.check_integrity()
        held = {block for sequence in self.running for block in sequence.blocks}
        assert len(held) == self._pool.num_used, "a block is held by nobody, or by somebody who does not run"
        assert all(not sequence.blocks for sequence in self.waiting)
        assert self._overtaken.keys() <= {sequence.id for sequence in (*self.waiting, *self.running)}

    def _continue(self, draft: _Draft, sequences: Iterable[Sequence]) -> None:
        """Let running sequences compute what they lack, while tokens last."""
        for sequence in sequences:
            count = min(sequence.remaining, draft.budget)
            # one may have been preempted for another in this very step
            if sequence.is_running and count and self._make_room(sequence, count, draft.preempted):
                self._compute(draft, sequence, count)

    def _admit(self, draft: _Draft, adapters: Adapters, newcomers: bool = False) -> None:
        """Let waiting sequences in while tokens, seats and blocks last; or only `newcomers`, for whom way is made:
        one each of the tenants that have nothing in the batch, as long as it is their turn."""
        passed: list[Sequence] = []
        blocked, draining = adapters.must_drain, set[str]()
        served = {sequence.tenant for sequence in self.running}
        for sequence in self.counters.in_turn(self.waiting, frozenset(served)):
            if not draft.budget or (newcomers and sequence.tenant in served):
                break
            if sequence.adapter is not None:
                use = AdapterUse(sequence.adapter, sequence.tenant)
                if blocked or sequence.tenant in draining or not adapters.admits(use):
                    passed.append(sequence)
                    if self._overtaken.get(sequence.id, 0) >= self._patience:
                        blocked = blocked or adapters.needs_room(use)
                        draining |= set() if adapters.loading(use.adapter) else {use.tenant or ""}
                    continue
            count = self._start(sequence, draft.budget)
            while newcomers and not count and self._preempt_for(sequence, draft.preempted):
                count = self._start(sequence, draft.budget)
            if not count:  # no seat, or no blocks: nobody behind may take those that come free
                break
            for waiting in passed:
                self._overtaken[waiting.id] = self._overtaken.get(waiting.id, 0) + 1
            self.counters.admitted(sequence.tenant, (waiting.tenant for waiting in passed))
            served.add(sequence.tenant)
            draft.admitted.append(sequence)
            self._compute(draft, sequence, count)

    def _compute(self, draft: _Draft, sequence: Sequence, count: int) -> None:
        """Put a chunk into the step, and charge it now: whose turn it is next depends on it."""
        chunk = Chunk(sequence, sequence.num_computed, count)
        draft.chunks.append(chunk)
        draft.budget -= count
        self.counters.charge(sequence.tenant, self._price(chunk))

    def _majority_tenant(self) -> str | None:
        """The tenant that has more in the batch than all others together."""
        tenant, seats = Counter(sequence.tenant for sequence in self.running).most_common(1)[0]
        return tenant if 2 * seats > len(self.running) else None

    def _to_plan(self, draft: _Draft, paused: str | None = None) -> StepPlan:
        """The plan: a tenant that pauses, or who was preempted for another in this very step, computes nothing in it,
        and pays nothing."""
        chunks = []
        for chunk in draft.chunks:
            if chunk.sequence.is_running and chunk.sequence.tenant != paused:
                chunks.append(chunk)
            else:
                self.counters.charge(chunk.sequence.tenant, -self._price(chunk))
        admitted = tuple(sequence for sequence in draft.admitted if sequence.is_running)
        return StepPlan(tuple(chunks), admitted, tuple(draft.preempted))

    def _price(self, chunk: Chunk) -> float:
        """What a chunk costs, but for what its sequence computed before it was preempted."""
        sequence = chunk.sequence
        first = max(chunk.start, sequence.num_charged)
        return self.counters.prices.price_of(sequence.prompt_len, first, chunk.stop) if chunk.stop > first else 0.0

    def _start(self, sequence: Sequence, budget: int) -> int:
        """Move one sequence from waiting to running; how many tokens it computes, 0 without a seat or blocks for it."""
        if len(self.running) >= self._max_sequences:
            return 0
        found = self._cached_prefix(sequence)
        computed = len(found) * self._pool.block_size
        count = min(len(sequence.tokens) - computed, budget)
        needed = self._pool.blocks_for(computed + count) - len(found)
        if not self._pool.can_allocate(needed, found):
            return 0
        self._pool.acquire(found)
        sequence.blocks = found + self._pool.allocate(needed)
        sequence.num_computed = computed
        sequence.status = Status.RUNNING
        self.waiting.remove(sequence)
        self.running.append(sequence)
        if sequence.admission is None:  # not when it comes back from a preemption
            self.prefix_tokens_asked += sequence.prompt_len
            self.prefix_tokens_found += computed
        return count

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold this prefix already. The last token is always computed: its logits are needed."""
        if sequence.params.prompt_logprobs is not None:  # needs the logits of every prompt token
            return []
        self._extend_hashes(sequence, len(sequence.tokens))
        usable = (len(sequence.tokens) - 1) // self._pool.block_size
        return self._pool.match(sequence.block_hashes[:usable])

    def _extend_hashes(self, sequence: Sequence, stop: int) -> None:
        sequence.block_hashes = prefix_hashes(
            sequence.tokens[:stop], self._pool.block_size, _root(sequence), sequence.block_hashes
        )

    def _make_room(self, sequence: Sequence, count: int, preempted: list[Sequence]) -> bool:
        """Give a running sequence the blocks for `count` more tokens, at the cost of those who came after it."""
        needed = self._pool.blocks_for(sequence.num_computed + count) - len(sequence.blocks)
        while needed > 0 and not self._pool.can_allocate(needed):
            last = self.running[-1]
            self._preempt(last)
            preempted.append(last)
            if last is sequence:
                return False
        if needed > 0:
            sequence.blocks += self._pool.allocate(needed)
        return True

    def _preempt_for(self, newcomer: Sequence, preempted: list[Sequence]) -> bool:
        """Take back the latest sequence of the tenant that has most running, if that had no less and keeps another."""
        level = self.counters.counter(newcomer.tenant)
        most = Counter(sequence.tenant for sequence in self.running).most_common()
        tenant = next((t for t, seats in most if seats > 1 and self.counters.counter(t) >= level), None)
        if tenant is None:
            return False
        latest = next(sequence for sequence in reversed(self.running) if sequence.tenant == tenant)
        self._preempt(latest)
        preempted.append(latest)
        return True

    def _note_enqueued(self, sequence: Sequence) -> None:
        self.counters.enqueued(sequence.tenant, {other.tenant for other in self.waiting})

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, to be recomputed (its tokens so far are kept, its blocks are not)."""
        self.running.remove(sequence)
        self._free(sequence)
        sequence.num_computed = 0
        sequence.status = Status.WAITING
        self._note_enqueued(sequence)
        self.waiting.appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks = []


def _root(sequence: Sequence) -> bytes:
    """Where a prefix chain begins: the same tokens under another adapter or tenant are another prefix."""
    return sha256(f"{sequence.adapter or ''}\0{sequence.tenant}".encode()).digest()
