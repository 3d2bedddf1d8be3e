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
from engine.sequence import Admission, Output, Request, TokenLogprob
from server.errors import BadRequest, api_error, internal
from server.fields import GenerationBody
from server.generation import Generation, Indexed, while_connected
from server.ports import Asked, Services
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


async def answer(http: HttpRequest, services: Services, target: Target, job: Job) -> Response:
    """The response to `job`. It releases `target` when the last byte has been produced or the client is gone."""
    if services.traces is not None:
        services.traces.asked(http.state.request_id, _asked(target, job))
    turn = _Turn(services, target, job)
    try:
        if not job.body.stream:
            body, headers = await while_connected(http, turn.whole())
            return Response(orjson.dumps(body), headers=headers, media_type="application/json")
        await while_connected(http, turn.begin())
    except BaseException:
        await turn.aclose()
        raise
    return EventStream(turn.chunks(), turn.aclose, turn.headers(), services.limits.idle_s)


def _asked(target: Target, job: Job) -> Asked:
    return Asked(
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


class _Turn:
    """One answer in the making."""

    def __init__(self, services: Services, target: Target, job: Job) -> None:
        self._services, self._target, self._job = services, target, job
        self._answering = services.lifecycle.answering()
        self._answering.__enter__()
        self._generation: Generation | None = None
        self._first: Indexed | None = None
        self._rest: AsyncIterator[Indexed] | None = None
        self._admissions: dict[int, Admission] = {}
        self._generated = 0
        self._closed = False

    async def begin(self) -> None:
        """Submit, and wait for the first output, which knows the adapter's tier and the time in the queue."""
        try:
            self._generation = await Generation.start(self._services.worker, self._job.requests)
        except PromptTooLong as error:
            raise BadRequest(str(error), self._job.prompt_field, "context_length_exceeded") from error
        self._rest = aiter(self._generation)
        self._first = self._noted(await anext(self._rest))

    async def whole(self) -> tuple[Chunk, dict[str, str]]:
        await self.begin()
        outputs: list[list[Output]] = [[] for _ in self._job.requests]
        async for index, output in self._outputs():
            outputs[index].append(output)
        layout = self._job.layout
        choices = [layout.whole(index, fold(parts)) for index, parts in enumerate(outputs)]
        await self.aclose()
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
        """Abort what still runs, and let go of the adapter. Twice is once."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._generation is not None:
                await self._generation.aclose()
        finally:
            self._target.release()
            self._answering.__exit__(None, None, None)

    def headers(self) -> dict[str, str]:
        headers = {"x-rootstock-adapter": self._target.adapter or "base"}
        if self._admissions:
            admission = next(iter(self._admissions.values()))
            headers |= {
                "x-rootstock-tier": admission.tier,
                "x-rootstock-queue-ms": f"{admission.queue_s * 1000:.1f}",
                "x-rootstock-load-ms": f"{admission.load_s * 1000:.1f}",
                "x-rootstock-cached-tokens": str(admission.cached_tokens),
            }
        return headers

    async def _outputs(self) -> AsyncIterator[Indexed]:
        assert self._first is not None and self._rest is not None
        yield self._first
        async for item in self._rest:
            yield self._noted(item)

    def _noted(self, item: Indexed) -> Indexed:
        index, output = item
        if output.admission is not None:
            self._admissions[index] = output.admission
        self._generated += len(output.token_ids)
        return item

    def _usage(self) -> Chunk:
        """OpenAI counts a prompt once, however many answers it has."""
        firsts = range(0, len(self._job.requests), self._job.body.n)
        prompt = sum(len(self._job.requests[index].prompt) for index in firsts)
        cached = sum(self._admissions[index].cached_tokens for index in firsts if index in self._admissions)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._generated,
            "total_tokens": prompt + self._generated,
            "prompt_tokens_details": {"cached_tokens": cached},
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
