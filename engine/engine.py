"""The step loop: move adapters, plan, compute, commit.

Owns the order of things within a step and what a result means for its sequence. Knows no torch, no threads and
no HTTP; everything it drives is handed to it.
"""

import logging
import secrets
from collections.abc import Collection, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from time import monotonic

from adapters.manifest import AdapterId
from engine.blocks import BlockPool
from engine.constraint import Constraint
from engine.detokenize import Decode, TextStream
from engine.errors import ConstraintFailed, EngineStopped, MergeRefused, PromptTooLong, QueueFull
from engine.events import Admitted, Finished, FirstToken, NextToken, Observer, Preempted, StepDone
from engine.result import ChunkResult, Runner
from engine.scheduler import Scheduler, StepPlan
from engine.sequence import Admission, FinishReason, Output, Request, Sequence, TokenLogprob
from engine.tiers import AdapterTiers, explain

log = logging.getLogger(__name__)

_NON_FINITE = ("The model's logits for this request are not finite.", "non_finite_logits")
_OVERFLOW = (
    "The numbers of this request's adapter are too large for it. Train with a lower rate, or use an earlier step.",
    "adapter_overflow",
)
_STUCK = (
    "What this request's answer must look like could not be followed any further: it takes too long to tell what may "
    "come next. Ask for something simpler, or less ambiguous.",
    "constraint_failed",
)

Delivery = tuple[str, Output]
"""A request's id, and what it is given."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_model_len` is the base's context in tokens, `max_waiting` bounds each tenant's queue."""

    max_model_len: int
    max_waiting: int


class Engine:
    """Continuous batching over one base. Single-threaded: everything happens between or inside steps."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        pool: BlockPool,
        tiers: AdapterTiers,
        decode: Decode,
        eos: Collection[int],
        limits: Limits,
        observe: Observer,
    ) -> None:
        self.scheduler = scheduler
        self.pool = pool
        self.tiers = tiers
        self.merged: AdapterId | None = None
        self.stalled = False  # whether the last step found nothing it could compute
        self._runner = runner
        self._decode = decode
        self._eos = frozenset(eos)
        self._limits = limits
        self._observe = observe
        self._sequences: dict[str, Sequence] = {}
        self._merging: tuple[AdapterId, Future[None]] | None = None
        self._outbox: list[Delivery] = []

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._merging is not None or self.tiers.busy

    def submit(self, request: Request) -> None:
        """Queue a request. Raises QueueFull, PromptTooLong, AdapterTooLarge, DeviceQuotaTooSmall, UnknownAdapter."""
        assert request.prompt, "without a token to start from nothing can be computed"
        assert request.id not in self._sequences, "two requests cannot share an id"
        free = request.params.min_tokens == 0 and not request.params.ignore_eos
        assert free or request.constraint is None, "a constraint decides where its answer ends"
        self._check(request)
        seed = request.params.seed
        sequence = Sequence(
            request=request,
            arrived=monotonic(),
            tokens=list(request.prompt),
            text=TextStream(self._decode, request.prompt, request.params.stop, request.shown),
            stream=secrets.randbits(63) if seed is None else seed,
            found_at=self._tier(request.adapter),
        )
        self._sequences[request.id] = sequence
        self.scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """End a request whose client has gone: nothing is delivered. One that has ended already is left alone."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._remove(sequence, FinishReason.ABORT)

    def step(self) -> list[Delivery]:
        """One turn: what each of its requests gained. Never raises; a failed forward fails its own requests."""
        started = monotonic()
        self._move_adapters()
        plan = self.scheduler.schedule(self.tiers)
        self._observe_plan(plan)
        self.stalled = not plan.chunks
        if plan.chunks:
            self._compute(plan)
            self._observe(StepDone(monotonic() - started, plan.num_tokens, len(plan.chunks)))
        return self._take_outbox()

    def merge(self, adapter: AdapterId) -> "Future[None]":
        """Merge an adapter once it is on the device. May end in MergeRefused or DoesNotFit."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # from here on it ends by our hand, whoever stops waiting
        if self.merged == adapter:
            done.set_result(None)
        elif self.merged is not None or self._merging is not None:
            done.set_exception(
                MergeRefused("Another adapter is merged already, or about to be. It has to be unmerged first.")
            )
        else:
            self.tiers.check(adapter)
            self._merging = (adapter, done)
        return done

    def unmerge(self) -> None:
        """Drop the merged weights; a merge that has yet to happen is refused."""
        self.cancel_merge(MergeRefused("It was unmerged before it could be merged."))
        if self.merged is not None:
            self._runner.unmerge()
            self.tiers.release_merged(self.merged)
            self.merged = None
            self.pool.forget_content()

    def cancel_merge(self, error: Exception) -> None:
        """End a merge that waits for its adapter."""
        if self._merging is not None:
            self._merging[1].set_exception(error)
            self._merging = None

    def forget(self, adapter: AdapterId) -> None:
        """Let go of a deleted adapter that no request uses."""
        if adapter == self.merged or (self._merging is not None and adapter == self._merging[0]):
            self.unmerge()
        self.tiers.forget(adapter)

    def abort_all(self) -> list[Delivery]:
        """End every request, and a merge that waits, for a shutdown that waits no longer."""
        self.cancel_merge(EngineStopped("The server is shutting down."))
        for sequence in list(self._sequences.values()):
            self._finish(sequence, FinishReason.ABORT)
        return self._take_outbox()

    def check_integrity(self) -> None:
        """Assert that nothing is held by nobody."""
        self.scheduler.check_integrity()
        self.tiers.check_integrity()
        assert all(self.tiers.admits(use) for use in self.scheduler.uses()), "it runs and is not there, or not allowed"
        assert len(self._sequences) == len(self.scheduler.waiting) + len(self.scheduler.running)

    # Before a request

    def _check(self, request: Request) -> None:
        waiting = self.scheduler.num_waiting(request.tenant)
        if waiting >= self._limits.max_waiting:
            raise QueueFull(waiting)
        limit = min(self._limits.max_model_len, self.pool.num_blocks * self.pool.block_size)
        if len(request.prompt) + request.params.max_tokens > limit:
            raise PromptTooLong(len(request.prompt), request.params.max_tokens, limit)
        if request.adapter is not None:
            self.tiers.check(request.adapter, request.tenant)

    def _tier(self, adapter: AdapterId | None) -> str:
        if adapter is None:
            return "base"
        return "merged" if adapter == self.merged else self.tiers.tier(adapter).value

    # Inside a step

    def _move_adapters(self) -> None:
        """Give the tiers their turn, fail whoever waited for an adapter that cannot be read, merge what is due."""
        merging = [self._merging[0]] if self._merging else []
        failed = self.tiers.move(self.scheduler.uses(), self.scheduler.wants(), urgent=merging)
        self.scheduler.charge_moves(self.tiers.moved)
        for sequence in list(self.scheduler.waiting) if failed else ():
            if sequence.adapter in failed:
                self._fail(sequence, *explain(failed[sequence.adapter]))
        if self._merging:
            self._try_merge(*self._merging, failed)

    def _try_merge(self, adapter: AdapterId, done: "Future[None]", failed: dict[AdapterId, Exception]) -> None:
        if adapter in failed:
            done.set_exception(failed[adapter])
        elif not self.tiers.ready(adapter):
            return
        else:
            try:
                self._runner.merge(adapter)
            except Exception as error:
                done.set_exception(error)
            else:
                self.merged = adapter
                self.tiers.hold_merged(adapter)
                self.pool.forget_content()
                done.set_result(None)
        self._merging = None

    def _observe_plan(self, plan: StepPlan) -> None:
        """Report admissions and preemptions, and note how each sequence was admitted."""
        now = monotonic()
        for sequence in plan.admitted:
            if sequence.admission is None:
                load_s = self._load_time(sequence)
                queue_s = now - sequence.arrived - load_s
                tier, cached = sequence.found_at, sequence.num_computed
                sequence.admission = Admission(tier, queue_s, load_s, cached)
                self._observe(
                    Admitted(sequence.id, sequence.adapter, tier, queue_s, load_s, sequence.prompt_len, cached)
                )
        for sequence in plan.preempted:
            self._observe(Preempted(sequence.id, sequence.adapter))

    def _load_time(self, sequence: Sequence) -> float:
        """How long a sequence waited for its adapter's bytes."""
        if sequence.adapter is None or sequence.found_at not in ("disk", "host"):
            return 0.0
        return max(0.0, self.tiers.placed_at(sequence.adapter) - sequence.arrived)

    def _compute(self, plan: StepPlan) -> None:
        """Run the plan and commit what came of it; if it raises, its requests fail and nothing else does."""
        try:
            results = self._runner.execute(plan)
        except Exception:
            log.exception("a step failed; its %d requests end with an error", len(plan.chunks))
            for chunk in plan.chunks:
                self._fail(chunk.sequence, "The server failed while computing this request.", "step_failed")
        else:
            self._commit(plan, results)

    def _commit(self, plan: StepPlan, results: Iterable[ChunkResult]) -> None:
        self.scheduler.commit(plan)
        for chunk, result in zip(plan.chunks, results, strict=True):
            sequence = chunk.sequence
            known = len(sequence.prompt_logprobs) - (chunk.start + 1)  # a preempted sequence computes these again
            sequence.prompt_logprobs += result.prompt[max(0, known) :]
            if not result.finite:
                # Full blocks were published with each of its chunks: whatever is not a number there is not for others.
                self.pool.forget(sequence.blocks)
                self._fail(sequence, *(_NON_FINITE if sequence.adapter is None else _OVERFLOW))
            elif result.stuck:
                self._fail(sequence, *_STUCK)
            elif result.token is not None:
                self._accept(sequence, result.token, result.logprob)
            elif chunk.catches_up:  # nothing was to be generated: the prompt's log-probabilities were the answer
                self._finish(sequence, FinishReason.LENGTH)

    def _accept(self, sequence: Sequence, token: int, logprob: TokenLogprob | None) -> None:
        """A sequence gains a token, and perhaps its end."""
        sequence.tokens.append(token)
        self._observe_token(sequence)
        p = sequence.params
        may_stop = sequence.num_generated >= p.min_tokens
        logprobs = () if logprob is None else (logprob,)
        if may_stop and self._ends(sequence, token):
            reason = token if token in p.stop_token_ids else None
            self._finish(sequence, FinishReason.STOP, Output(token_ids=(token,), logprobs=logprobs, stop_reason=reason))
            return
        piece = sequence.text.push(token, may_stop=may_stop)
        output = Output(piece.text, (token,), logprobs, stop_reason=piece.stopped_by)
        try:
            ended = piece.stopped_by is not None or _completes(sequence.constraint, token)
        except ConstraintFailed:
            self._fail(sequence, *_STUCK)
            return
        if ended:
            self._finish(sequence, FinishReason.STOP, output)
        elif sequence.num_generated >= p.max_tokens:
            self._finish(sequence, FinishReason.LENGTH, output)
        else:
            self._deliver(sequence, output)

    def _ends(self, sequence: Sequence, token: int) -> bool:
        p = sequence.params
        return token in p.stop_token_ids or (token in self._eos and not p.ignore_eos)

    # After it

    def _fail(self, sequence: Sequence, error: str, code: str) -> None:
        self._finish(sequence, FinishReason.ERROR, Output(error=error, error_code=code))

    def _finish(self, sequence: Sequence, reason: FinishReason, last: Output | None = None) -> None:
        """Take a sequence out and give it its last output, with whatever text was held back."""
        last = last or Output()
        tail = sequence.text.finish().text
        self._deliver(sequence, replace(last, text=last.text + tail, finish_reason=reason))
        self._remove(sequence, reason)

    def _remove(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.finish(sequence)
        del self._sequences[sequence.id]
        lasted = monotonic() - sequence.arrived
        self._observe(Finished(sequence.id, sequence.adapter, reason, sequence.num_generated, lasted))

    def _deliver(self, sequence: Sequence, output: Output) -> None:
        """The first output also says how the sequence was admitted, and what its prompt was worth if that was asked."""
        if not sequence.announced:
            asked = sequence.params.prompt_logprobs is not None
            prompt_logprobs = tuple(sequence.prompt_logprobs) if asked else None
            output = replace(output, admission=sequence.admission, prompt_logprobs=prompt_logprobs)
            sequence.announced = True
        self._outbox.append((sequence.id, output))

    def _take_outbox(self) -> list[Delivery]:
        outbox, self._outbox = self._outbox, []
        return outbox

    def _observe_token(self, sequence: Sequence) -> None:
        now = monotonic()
        if sequence.last_token_at is None:
            self._observe(FirstToken(sequence.id, sequence.adapter, now - sequence.arrived))
        else:
            self._observe(NextToken(sequence.adapter, now - sequence.last_token_at))
        sequence.last_token_at = now


def _completes(constraint: Constraint | None, token: int) -> bool:
    """Tell a sequence's constraint of its new token; whether the answer is whole with it."""
    if constraint is None:
        return False
    constraint.accept(token)
    return constraint.complete
