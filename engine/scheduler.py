"""Who computes which tokens in the next step.

Owns the waiting and running queues, and through them every sequence's blocks. There is no prefill phase: a
sequence catches up to its tokens, some at a time (chunked prefill, arXiv 2308.16369). Knows no torch; adapters
are only ids that may or may not be ready.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from adapters.manifest import AdapterId
from engine.blocks import BlockPool, prefix_hashes
from engine.sequence import Sequence, Status


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


class Scheduler:
    """First come, first served, except that nobody waits behind an adapter that is still loading.

    Running sequences go first. When blocks run out, the sequence that came last gives its own back and is
    recomputed later. A waiting sequence is overtaken at most `patience` times for want of room; then nobody with an
    adapter passes it, so the running ones drain and its adapter is placed. One that is being read holds up nobody.
    """

    def __init__(self, pool: BlockPool, max_batch_tokens: int, max_sequences: int, patience: int = 64) -> None:
        self._pool = pool
        self._max_batch_tokens = max_batch_tokens
        self._max_sequences = max_sequences
        self._patience = patience
        self._overtaken: dict[str, int] = {}
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.prefix_tokens_asked = 0
        self.prefix_tokens_found = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def running_adapters(self) -> set[AdapterId]:
        return {sequence.adapter for sequence in self.running if sequence.adapter is not None}

    def wanted_adapters(self) -> tuple[AdapterId, ...]:
        """The adapters of those who wait, soonest first, as far as a few full batches reach."""
        reach = 4 * self._max_sequences
        ahead = (sequence.adapter for sequence, _ in zip(self.waiting, range(reach), strict=False))
        return tuple(dict.fromkeys(adapter for adapter in ahead if adapter is not None))

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def plan(
        self, ready: Callable[[AdapterId], bool], loading: Callable[[AdapterId], bool], drain: bool = False
    ) -> StepPlan:
        """Take blocks for the next step and say what it computes.

        `ready` tells whether an adapter is on the device, `loading` whether it is being read from disk. With `drain`
        nobody with an adapter comes in, so that those on the device can leave.
        """
        budget = self._max_batch_tokens
        chunks: list[Chunk] = []
        preempted: list[Sequence] = []
        for sequence in sorted(self.running, key=lambda s: s.remaining > 1):  # a long prompt must not hold up decoding
            if sequence.status is not Status.RUNNING:  # preempted for another one in this very step
                continue
            count = min(sequence.remaining, budget)
            if count and self._make_room(sequence, count, preempted):
                chunks.append(Chunk(sequence, sequence.num_computed, count))
                budget -= count
        chunks = [chunk for chunk in chunks if chunk.sequence.status is Status.RUNNING]
        admitted = [] if preempted else list(self._admit(budget, ready, loading, drain))
        chunks += [Chunk(sequence, sequence.num_computed, count) for sequence, count in admitted]
        return StepPlan(tuple(chunks), tuple(sequence for sequence, _ in admitted), tuple(preempted))

    def commit(self, plan: StepPlan) -> None:
        """The planned tokens are in the cache now: count them, and let full blocks be found by others."""
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.stop
            first, end = chunk.start // self._pool.block_size, chunk.stop // self._pool.block_size
            if end > first:
                self._extend_hashes(sequence, chunk.stop)
            for index in range(first, end):
                self._pool.publish(sequence.blocks[index], sequence.block_hashes[index])

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence.status is Status.RUNNING:
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

    def _admit(
        self, budget: int, ready: Callable[[AdapterId], bool], loading: Callable[[AdapterId], bool], blocked: bool
    ) -> Iterator[tuple[Sequence, int]]:
        """Let waiting sequences in while tokens, seats and blocks last."""
        passed: list[Sequence] = []
        for sequence in list(self.waiting):
            if not budget or len(self.running) >= self._max_sequences:
                break
            if sequence.adapter is not None and (blocked or not ready(sequence.adapter)):
                passed.append(sequence)
                impatient = self._overtaken.get(sequence.id, 0) >= self._patience
                blocked = blocked or (impatient and not loading(sequence.adapter))
                continue
            count = self._enter(sequence, budget)
            if not count:  # no blocks: nobody behind may take those that come free
                break
            for waiting in passed:
                self._overtaken[waiting.id] = self._overtaken.get(waiting.id, 0) + 1
            budget -= count
            yield sequence, count

    def _enter(self, sequence: Sequence, budget: int) -> int:
        """Move one sequence from waiting to running; how many tokens it computes, 0 if its blocks are not to be had."""
        found = self._cached_prefix(sequence)
        computed = len(found) * self._pool.block_size
        count = min(len(sequence.tokens) - computed, budget)
        needed = self._pool.blocks_for(computed + count) - len(found)
        if not self._pool.can_allocate(needed, found):
            return 0
        self._pool.share(found)
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

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, to be recomputed (its tokens so far are kept, its blocks are not)."""
        self.running.remove(sequence)
        self._free(sequence)
        sequence.num_computed = 0
        sequence.status = Status.WAITING
        self.waiting.appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks = []


def _root(sequence: Sequence) -> bytes:
    """Where a prefix chain begins: the same tokens under another adapter or tenant are another prefix."""
    return sha256(f"{sequence.adapter or ''}\0{sequence.request.tenant}".encode()).digest()
