"""From accepted requests to an HTTP answer, streamed or whole, through one path.

Owns the order of things: submit, wait for the first output, send headers, send the rest. A whole answer is
the stream folded, so both say the same. Knows no endpoint's layout; that is a `Layout`'s.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from engine.errors import PromptTooLong
from engine.sequence import Admission, FinishReason, Output, Request, TokenLogprob
from server.disconnect import while_connected
from server.errors import BadRequest, GenerationFailed, api_error, internal
from server.fields import GenerationBody
from server.generation import Generation, Indexed
from server.meter import Claim, MeteredRequest
from server.ports import Services, TracedRequest
from server.principal import Principal
from server.resolve import Target
from server.stream import EventStream

Chunk = dict[str, Any]


class Layout(Protocol):
    """How one endpoint spells choices. It is asked in order, once an output."""

    def opening(self, index: int) -> list[Chunk]:
        """Choices to send before a choice's first output."""
        ...

    def increment(self, index: int, output: Output) -> list[Chunk]:
        """The choices that tell `output`; none when there is nothing to tell yet."""
        ...

    def whole(self, index: int, output: Output) -> Chunk:
        """The one choice that tells all of a sequence's outputs, folded into `output`."""
        ...

    def frame(self, choices: list[Chunk], streamed: bool) -> Chunk:
        """The object around `choices`."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request's work: `requests` in the order of the choices, `n` to a prompt."""

    body: GenerationBody
    requests: Sequence[Request]
    layout: Layout
    prompt_field: str

    @property
    def firsts(self) -> range:
        """The first request of each prompt: OpenAI counts a prompt once, however many answers it has."""
        return range(0, len(self.requests), self.body.n)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(self.requests[index].prompt) for index in self.firsts)


async def answer(http: HttpRequest, services: Services, caller: Principal, target: Target, job: Job) -> Response:
    """The response to `job`. It releases `target` once the engine is through with it, or the client is gone.

    Raises RateLimited before anything has begun.
    """
    most = sum(request.params.max_tokens for request in job.requests)
    claim = Claim(http.state.request_id, target.version, job.prompt_tokens, most)
    metered = services.meter.admit(caller, claim)
    if services.traces is not None:
        services.traces.describe(http.state.request_id, _traced(target, job))
    turn = _Answer(services, target, job, metered)
    try:
        if not job.body.stream:
            body, headers = await while_connected(http, turn.whole())
            return Response(orjson.dumps(body), headers=headers, media_type="application/json")
        await while_connected(http, turn.begin())
    except BaseException:
        await turn.aclose()
        raise
    return EventStream(turn.chunks(), turn.aclose, turn.headers())


def _traced(target: Target, job: Job) -> TracedRequest:
    return TracedRequest(
        operation="chat" if job.prompt_field == "messages" else "text_completion",
        model=target.model,
        adapter=target.adapter,
        stream=job.body.stream,
        choices=job.body.n,
        max_tokens=job.requests[0].params.max_tokens,
        temperature=job.body.temperature,
        top_p=job.body.top_p,
        sequences=tuple(request.id for request in job.requests),
    )


class _Answer:
    """One answer in the making."""

    def __init__(self, services: Services, target: Target, job: Job, metered: MeteredRequest) -> None:
        self._services, self._target, self._job, self._metered = services, target, job, metered
        self._answering = services.lifecycle.answering()
        self._answering.__enter__()
        self._generation: Generation | None = None
        self._first: Indexed | None = None
        self._rest: AsyncIterator[Indexed] | None = None
        self._admissions: dict[int, Admission] = {}
        self._reasons: dict[int, FinishReason] = {}
        self._failed = False
        self._closed = False

    async def begin(self) -> None:
        """Submit, and wait for the first output, which knows the adapter's tier and the time in the queue."""
        try:
            generation = await Generation.start(self._services.worker, self._job.requests)
        except PromptTooLong as error:
            raise BadRequest(str(error), self._job.prompt_field, "context_length_exceeded") from error
        self._generation = generation
        self._metered.accepted()
        self._metered.follow(lambda: generation.tokens)
        self._rest = aiter(generation)
        self._first = await self._next()

    async def whole(self) -> tuple[Chunk, dict[str, str]]:
        await self.begin()
        outputs: list[list[Output]] = [[] for _ in self._job.requests]
        async for index, output in self._outputs():
            outputs[index].append(output)
        layout = self._job.layout
        choices = [layout.whole(index, fold(parts)) for index, parts in enumerate(outputs)]
        return layout.frame(choices, streamed=False) | {"usage": self._usage()}, self.headers()

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        layout, options = self._job.layout, self._job.body.stream_options
        usage: Chunk = {"usage": None} if options is not None and options.include_usage else {}
        try:
            opened: set[int] = set()
            async for index, output in self._outputs():
                choices = [] if index in opened else layout.opening(index)
                opened.add(index)
                for choice in choices + layout.increment(index, output):
                    yield layout.frame([choice], streamed=True) | usage
            if usage:
                yield layout.frame([], streamed=True) | {"usage": self._usage()}
        except Exception as error:  # the status has gone out: the stream tells it as its last event
            self._services.metrics.error((api_error(error) or internal()).code)
            raise
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Abort what still runs, and let go of the adapter. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._generation is not None:
                await self._generation.aclose()
        finally:
            self._settle()
            self._target.release()
            self._answering.__exit__(None, None, None)

    def headers(self) -> dict[str, str]:
        headers = self._metered.headers() | {"x-rootstock-adapter": self._target.adapter or "base"}
        if self._admissions:
            admission = next(iter(self._admissions.values()))
            headers |= {
                "x-rootstock-tier": self._tier(admission),
                "x-rootstock-queue-ms": f"{admission.queue_s * 1000:.1f}",
                "x-rootstock-load-ms": f"{admission.load_s * 1000:.1f}",
                "x-rootstock-cached-tokens": str(admission.cached_tokens),
            }
        return headers

    def _tier(self, admission: Admission) -> str:
        lease = self._target.lease
        return admission.tier if lease is None else self._services.merges.shown(lease.version, admission.tier)

    async def _outputs(self) -> AsyncIterator[Indexed]:
        """In order. Before the last one is told, the adapter is let go: whoever reads it may delete the adapter."""
        item = self._first
        while item is not None and len(self._reasons) < len(self._job.requests):
            yield item
            item = await self._next()
        if item is not None:
            await self._next()  # there is none, and the generation has come to its end
            await self.aclose()
            yield item

    async def _next(self) -> Indexed | None:
        """The next output, noted; None after the last."""
        assert self._rest is not None
        try:
            index, output = await anext(self._rest)
        except StopAsyncIteration:
            return None
        except GenerationFailed:
            self._failed = True
            raise
        if output.admission is not None:
            self._admissions[index] = output.admission
        if output.finish_reason is not None:
            self._reasons[index] = output.finish_reason
        return index, output

    def _settle(self) -> None:
        """Tell what was used, once, however it ended."""
        if self._generation is None:
            self._metered.refuse()
        else:
            self._metered.end(self._cached(), self._generation.tokens, self._finish_reason())

    def _finish_reason(self) -> str:
        """One word for all choices; whoever has not ended when the answer is closed was aborted."""
        if self._failed:
            return FinishReason.ERROR.value
        if len(self._reasons) < len(self._job.requests):
            return FinishReason.ABORT.value
        reasons = set(self._reasons.values())
        return reasons.pop().value if len(reasons) == 1 else "mixed"

    def _cached(self) -> int:
        return sum(self._admissions[index].cached_tokens for index in self._job.firsts if index in self._admissions)

    def _usage(self) -> Chunk:
        assert self._generation is not None
        prompt, generated = self._job.prompt_tokens, self._generation.tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": self._cached()},
        }


def fold(outputs: Sequence[Output]) -> Output:
    """All of one sequence's outputs as one."""
    last = outputs[-1]
    prompt: tuple[TokenLogprob | None, ...] | None = None
    for output in outputs:
        prompt = output.prompt_logprobs if prompt is None else prompt
    return Output(
        text="".join(output.text for output in outputs),
        token_ids=tuple(id for output in outputs for id in output.token_ids),
        logprobs=tuple(report for output in outputs for report in output.logprobs),
        prompt_logprobs=prompt,
        admission=outputs[0].admission,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
    )
