"""A worker that keeps the engine's contract without a model: it spells letters, one token a tick.

The text depends on the prompt, the adapter and the seed only, so that streamed and whole answers can be
compared. Tokens are bytes (see `tests/support/tokenizer.py`).
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace

from adapters.manifest import AdapterId
from engine.errors import EngineStopped, MergeRefused, PromptTooLong, QueueFull
from engine.sequence import Admission, FinishReason, Output, Request, TokenLogprob
from engine.snapshot import EngineStats, Resident

IDLE = EngineStats(blocks_total=100, device_bytes_total=10_000, host_bytes_total=10_000)


@dataclass
class FakeWorker:
    """`delay_s` is one token's time; `fail_after` tokens a request ends in an error; `room` requests fit at once.

    `says` is every answer's text, of ASCII, where it is not letters at random; a request's constraint must allow it.
    """

    max_model_len: int = 4096
    delay_s: float = 0.0
    fail_after: int | None = None
    room: int = 1000
    alive: bool = True
    restarting: bool = False
    restarts: int = 0
    silent_s: float = 0.0
    running: dict[str, Request] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    pinned: set[AdapterId] = field(default_factory=set)
    forgotten: list[AdapterId] = field(default_factory=list)
    handed: Counter[str] = field(default_factory=Counter)  # tokens handed over, by request
    prefetched: list[AdapterId] = field(default_factory=list)
    merged: AdapterId | None = None
    device_quotas: Sequence[float] = ()
    stopped: bool = False
    says: str | None = None

    async def submit(self, request: Request) -> "FakeStream":
        limit = self.max_model_len
        if self.stopped:
            raise EngineStopped("stopped")
        if len(request.prompt) + request.params.max_tokens > limit:
            raise PromptTooLong(len(request.prompt), request.params.max_tokens, limit)
        if len(self.running) >= self.room:
            raise QueueFull(len(self.running))
        self.running[request.id] = request
        self.seen.append(request)
        return FakeStream(self, request)

    async def pin(self, id: AdapterId) -> None:
        self.pinned.add(id)

    async def unpin(self, id: AdapterId) -> None:
        self.pinned.discard(id)

    async def merge(self, id: AdapterId) -> None:
        if self.merged not in (None, id):
            raise MergeRefused("Another adapter is merged already.")
        self.merged = id

    async def unmerge(self) -> None:
        self.merged = None

    async def forget(self, id: AdapterId) -> None:
        self.forgotten.append(id)

    async def prefetch(self, ids: Sequence[AdapterId]) -> None:
        self.prefetched.extend(ids)

    def pins(self) -> frozenset[AdapterId]:
        return frozenset(self.pinned)

    def residents(self) -> Sequence[Resident]:
        merged = [Resident(self.merged, "merged", 1000)] if self.merged else []
        return [Resident(id, "device", 1000, pinned=True) for id in sorted(self.pinned)] + merged

    def device_quotas_used(self) -> Sequence[float]:
        return self.device_quotas

    def stats(self) -> EngineStats:
        adapters = {request.adapter for request in self.running.values() if request.adapter is not None}
        return replace(IDLE, running=len(self.running), running_adapters=tuple(sorted(adapters)), merged=self.merged)


class FakeStream:
    """One request's outputs; closing it early counts as an abort."""

    def __init__(self, worker: FakeWorker, request: Request) -> None:
        self._worker, self._request = worker, request
        self._outputs = iter(outputs_for(request, worker.fail_after, worker.merged, worker.says))
        self._over = False

    def __aiter__(self) -> AsyncIterator[Output]:
        return self

    async def __anext__(self) -> Output:
        if self._request.id not in self._worker.running:
            return self._ended()
        await asyncio.sleep(self._worker.delay_s)
        output = next(self._outputs)
        self._worker.handed[self._request.id] += len(output.token_ids)
        if output.finish_reason is not None:
            self._over = True
            self._worker.running.pop(self._request.id, None)
        return output

    def _ended(self) -> Output:
        """Once an abort, where the worker was stopped under a running request; else the end."""
        if self._worker.stopped and not self._over:
            self._over = True
            return Output(finish_reason=FinishReason.ABORT)
        raise StopAsyncIteration

    def unread(self) -> Sequence[Output]:
        return ()

    async def aclose(self) -> None:
        if self._worker.running.pop(self._request.id, None) is not None:
            self._worker.aborted.append(self._request.id)


def outputs_for(
    request: Request, fail_after: int | None = None, merged: AdapterId | None = None, says: str | None = None
) -> Iterable[Output]:
    """The outputs a request gets: letters until `max_tokens`, a stop string, or `fail_after` tokens."""
    params = request.params
    letters = spelled(request) if says is None else _said(request, says)
    reason, stop_reason = FinishReason.STOP if letters == says else FinishReason.LENGTH, None
    for stop in params.stop:
        if stop in letters:
            letters, reason, stop_reason = letters[: letters.index(stop)], FinishReason.STOP, stop
    tier = "base" if request.adapter is None else "merged" if request.adapter == merged else "device"
    first = Output(
        admission=Admission(tier, queue_s=0.001, load_s=0.0, cached_tokens=len(request.prompt) // 2),
        prompt_logprobs=_prompt_logprobs(request),
    )
    yield first
    for place, letter in enumerate(letters):
        if place == fail_after:
            yield Output(
                finish_reason=FinishReason.ERROR, error="The logits are not finite.", error_code="non_finite_logits"
            )
            return
        yield Output(text=letter, token_ids=(ord(letter),), logprobs=_logprobs(ord(letter), params.logprobs))
    yield Output(finish_reason=reason, stop_reason=stop_reason)


def _said(request: Request, says: str) -> str:
    """As much of it as the request has room for, and what its constraint allows."""
    said = says[: request.params.max_tokens]
    for place, byte in enumerate(said.encode() if request.constraint else b""):
        assert request.constraint is not None
        assert request.constraint.allowed()[byte // 8] >> byte % 8 & 1, f"not allowed: {said[place:]}"
        request.constraint.accept(byte)
    return said


def spelled(request: Request) -> str:
    """`max_tokens` letters that depend on nothing but the prompt, the adapter and the seed."""
    long = len(request.prompt) > 1000  # to write one out holds the loop up, which is the server's to do
    about = repr((hash(request.prompt) if long else request.prompt, request.adapter, request.params.seed))
    length, letters = request.params.max_tokens, ""
    while len(letters) < length:
        about = hashlib.sha256(about.encode()).hexdigest()
        letters += "".join(chr(ord("a") + int(digit, 16)) for digit in about)
    return letters[:length]


def _logprobs(id: int, alternatives: int | None) -> tuple[TokenLogprob, ...]:
    if alternatives is None:
        return ()
    top = tuple((id + step, -0.25 - step) for step in range(alternatives))
    return (TokenLogprob(id, -0.25, top),)


def _prompt_logprobs(request: Request) -> tuple[TokenLogprob | None, ...] | None:
    alternatives = request.params.prompt_logprobs
    if alternatives is None:
        return None
    return (None, *(_logprobs(id, alternatives)[0] for id in request.prompt[1:]))
