"""Requests as OpenTelemetry traces: one span a request, and under it queue, adapter load, prefill and decode.

Owns the only knowledge of OpenTelemetry in the project; imported where a collector is set, and nowhere else. The engine
tells its events and does not know who listens. No prompt, no answer and no header becomes an attribute.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.events import Admitted, Event, Finished, FirstToken, Preempted
from server.ports import TracedRequest
from server.version import version

Value = str | int | float | bool | Sequence[str]


@dataclass(slots=True)
class _SequenceTimes:
    """How far one sequence came, in nanoseconds since 1970; the engine's thread writes, the loop reads at the end."""

    submitted: int
    admitted: Admitted | None = None
    admitted_at: int = 0
    first_token_at: int | None = None
    finished: Finished | None = None
    finished_at: int | None = None
    preempted_at: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _OpenRequest:
    """A request's span while it is answered, and what it asked of the engine."""

    span: Span
    context: Context
    request: TracedRequest | None = None
    times: dict[str, _SequenceTimes] = field(default_factory=dict)


class Traces:
    """The spans of one server. `observe` may be called on any thread; everything else runs on the event loop."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("rootstock", version())
        self._open: dict[str, _OpenRequest] = {}
        self._times: dict[str, _SequenceTimes] = {}

    def begin(self, request_id: str, headers: Mapping[str, str]) -> str:
        """Open the span of one HTTP request, a child of the caller's `traceparent`; gives its trace's id."""
        parent = TraceContextTextMapPropagator().extract(headers)
        span = self._tracer.start_span("request", context=parent, kind=SpanKind.SERVER)
        self._open[request_id] = _OpenRequest(span, set_span_in_context(span))
        return format(span.get_span_context().trace_id, "032x")

    def describe(self, request_id: str, request: TracedRequest) -> None:
        """What a request is about to hand to the engine."""
        one = self._open.get(request_id)
        if one is None:
            return
        one.request = request
        one.times = {id: _SequenceTimes(time.time_ns()) for id in request.sequences}
        self._times |= one.times

    def observe(self, event: Event) -> None:
        """An engine observer: note when things happened to the sequences that are traced."""
        if not isinstance(event, Admitted | FirstToken | Preempted | Finished):
            return
        sequence = self._times.get(event.request)
        if sequence is None:
            return
        now = time.time_ns()
        match event:
            case Admitted():
                sequence.admitted, sequence.admitted_at = event, now
            case FirstToken():
                sequence.first_token_at = now
            case Preempted():
                sequence.preempted_at.append(now)
            case Finished():
                sequence.finished, sequence.finished_at = event, now

    def end(self, request_id: str, method: str, route: str, status: int) -> None:
        """The answer is complete, or nobody waits for it: close the request's span, and make its children."""
        one, now = self._open.pop(request_id), time.time_ns()
        for id, sequence in one.times.items():
            del self._times[id]
            self._stages(one.context, sequence, now)
        span = one.span
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
        if one.request is not None:
            span.set_attributes(_generation(one.request, [*one.times.values()]))
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        span.end(now)

    def close(self) -> None:
        """Send what is left. Waits for the collector, so it is called off the loop."""
        self._provider.shutdown()

    def _stages(self, parent: Context, sequence: _SequenceTimes, now: int) -> None:
        """The children of one sequence; a stage that an abort or an error cut short ends where the sequence did."""
        end = sequence.finished_at or now
        if sequence.admitted is None:
            self._stage("queue", parent, sequence.submitted, end)
            return
        admitted = sequence.admitted
        began = sequence.admitted_at - _ns(admitted.queue_s)
        if admitted.load_s:
            where = {"rootstock.adapter.id": admitted.adapter or "", "rootstock.adapter.tier": admitted.tier}
            self._stage("adapter load", parent, began - _ns(admitted.load_s), began, where)
        self._stage("queue", parent, began, sequence.admitted_at)
        about = {"rootstock.prompt_tokens": admitted.prompt_tokens, "rootstock.cached_tokens": admitted.cached_tokens}
        if sequence.first_token_at is None:
            self._stage("prefill", parent, sequence.admitted_at, end, about, sequence.preempted_at)
            return
        self._stage("prefill", parent, sequence.admitted_at, sequence.first_token_at, about)
        self._stage("decode", parent, sequence.first_token_at, end, preempted=sequence.preempted_at)

    def _stage(
        self,
        name: str,
        parent: Context,
        began: int,
        ended: int,
        about: Mapping[str, Value] | None = None,
        preempted: Sequence[int] = (),
    ) -> None:
        span = self._tracer.start_span(name, context=parent, start_time=began, attributes=about)
        for at in preempted:
            span.add_event("preempted", timestamp=at)
        span.end(ended)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _generation(request: TracedRequest, times: Sequence[_SequenceTimes]) -> dict[str, Value]:
    """The request in the names of OpenTelemetry's conventions for generative AI."""
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": request.operation,
        "gen_ai.provider.name": "rootstock",
        "gen_ai.request.model": request.model,
        "gen_ai.request.stream": request.stream,
        "gen_ai.request.choice.count": request.choices,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.response.model": request.adapter or "base",
    }
    finished = [sequence.finished for sequence in times if sequence.finished is not None]
    if finished:
        attributes["gen_ai.response.finish_reasons"] = [one.reason.value for one in finished]
        attributes["gen_ai.usage.output_tokens"] = sum(one.generated_tokens for one in finished)
    admitted = [sequence.admitted for sequence in times[:: request.choices] if sequence.admitted is not None]
    if admitted:  # a prompt counts once, however many answers it has
        attributes["gen_ai.usage.input_tokens"] = sum(one.prompt_tokens for one in admitted)
        attributes["gen_ai.usage.cache_read.input_tokens"] = sum(one.cached_tokens for one in admitted)
    return attributes


def exported_to(endpoint: str, base: str) -> Traces:
    """Traces that a thread of the SDK sends to the collector at `endpoint`, which OTLP's path is added to."""
    resource = Resource.create({"service.name": "rootstock", "service.version": version(), "rootstock.base": base})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Traces(provider)
