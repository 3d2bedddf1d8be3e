"""Traces: a request's span and its stages, from the real engine's events, read back from the SDK's own exporter."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from adapters.manifest import AdapterId
from engine.events import Admitted, Finished, FirstToken, Preempted
from engine.sequence import FinishReason
from server.assembly import traces_of
from server.ports import TracedRequest
from server.settings import SettingsError, read_settings
from server.traces import Traces
from tests.support.engine_fakes import Bench
from tests.support.http import eventually, serve
from tests.support.reply_checks import check_after
from tests.support.server_rig import BASE, make_rig

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CANARY = "zebra"
ONE = AdapterId(f"sha256:{1:064x}")


@dataclass
class Exported:
    """Traces into memory."""

    traces: Traces
    exporter: InMemorySpanExporter

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture
def exported() -> Iterator[Exported]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = Traces(provider)
    yield Exported(traces, exporter)
    traces.close()


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def asked(*sequences: str, choices: int = 1) -> TracedRequest:
    return TracedRequest("chat", "pirate@prod", ONE, False, choices, 16, 0.5, 1.0, sequences)


def answer(exported: Exported, asked: TracedRequest, headers: dict[str, str] | None = None, status: int = 200) -> None:
    """Open and close one request around whatever happened to its sequences before."""
    exported.traces.begin("r", headers or {})
    exported.traces.describe("r", asked)
    for id in asked.sequences:
        exported.traces.observe(Admitted(id, ONE, "disk", 0.01, 0.02, 10, 4))
        exported.traces.observe(FirstToken(id, ONE, 0.05))
        exported.traces.observe(Finished(id, ONE, FinishReason.STOP, 7, 0.1))
    exported.traces.end("r", "POST", "/v1/chat/completions", status)


def test_a_request_has_its_stages_in_order(exported: Exported) -> None:
    answer(exported, asked("r-0"))
    root = exported.one("POST /v1/chat/completions")
    stages = [exported.one(name) for name in ("adapter load", "queue", "prefill", "decode")]
    assert root.kind is SpanKind.SERVER
    for stage in stages:
        assert stage.parent is not None and stage.parent.span_id == context_of(root).span_id
    for before, after in zip(stages, stages[1:], strict=False):
        assert before.end_time == after.start_time
    load, queue = stages[:2]
    assert (load.end_time or 0) - (load.start_time or 0) == pytest.approx(0.02e9, abs=1e3)
    assert (queue.end_time or 0) - (queue.start_time or 0) == pytest.approx(0.01e9, abs=1e3)
    assert load.attributes == {"rootstock.adapter.id": ONE, "rootstock.adapter.tier": "disk"}


def test_attributes_go_by_the_conventions(exported: Exported) -> None:
    answer(exported, asked("r-0", "r-1", choices=2))
    attributes = dict(exported.one("POST /v1/chat/completions").attributes or {})
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "rootstock",
        "gen_ai.request.model": "pirate@prod",
        "gen_ai.request.stream": False,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 16,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.response.model": ONE,
        "gen_ai.response.finish_reasons": ("stop", "stop"),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.output_tokens": 14,
    }


def test_the_callers_trace_goes_on(exported: Exported) -> None:
    answer(exported, asked("r-0"), {"traceparent": PARENT})
    root = exported.one("POST /v1/chat/completions")
    assert format(context_of(root).trace_id, "032x") == PARENT.split("-")[1]
    assert root.parent is not None and format(root.parent.span_id, "016x") == PARENT.split("-")[2]


@pytest.mark.parametrize("header", ["", "00-zz-zz-01", "0" * 5000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_an_odd_traceparent_begins_a_trace(header: str, exported: Exported) -> None:
    answer(exported, asked("r-0"), {"traceparent": header})
    assert exported.one("POST /v1/chat/completions").parent is None


def test_a_caller_that_does_not_sample_is_not_sampled(exported: Exported) -> None:
    answer(exported, asked("r-0"), {"traceparent": PARENT[:-2] + "00"})
    assert exported.spans == []


def test_a_request_that_leaves_the_queue_ends_there(exported: Exported) -> None:
    exported.traces.begin("r", {})
    exported.traces.describe("r", asked("r-0"))
    exported.traces.end("r", "POST", "/v1/completions", 499)
    assert [span.name for span in exported.spans] == ["queue", "POST /v1/completions"]
    exported.traces.observe(Finished("r-0", ONE, FinishReason.ABORT, 0, 0.1))  # the engine hears of it a step later
    assert not exported.traces._times and not exported.traces._open


def test_failures_and_preemptions_show(exported: Exported) -> None:
    exported.traces.begin("r", {})
    exported.traces.describe("r", asked("r-0"))
    exported.traces.observe(Admitted("r-0", ONE, "device", 0.0, 0.0, 10, 0))
    exported.traces.observe(Preempted("r-0", ONE))
    exported.traces.observe(Finished("r-0", ONE, FinishReason.ERROR, 0, 0.1))
    exported.traces.end("r", "POST", "/v1/completions", 500)
    assert exported.one("POST /v1/completions").status.status_code is StatusCode.ERROR
    assert [event.name for event in exported.one("prefill").events] == ["preempted"]
    assert not exported.named("adapter load") and not exported.named("decode")


def test_the_engines_own_events_make_a_trace(exported: Exported) -> None:
    """The real engine with an adapter on disk: what it tells is enough."""
    bench = Bench(adapters={"a": 10})
    exported.traces.begin("r", {})
    exported.traces.describe("r", asked("r-0"))
    bench.submit("r-0", adapter="a", max_tokens=3)
    bench.run()
    for event in bench.events:
        exported.traces.observe(event)
    exported.traces.end("r", "POST", "/v1/completions", 200)
    assert [span.name for span in exported.spans][-3:] == ["prefill", "decode", "POST /v1/completions"]
    assert (exported.one("POST /v1/completions").attributes or {})["gen_ai.usage.output_tokens"] == 3


def roots_of(exported: Exported) -> list[ReadableSpan]:
    return [span for span in exported.spans if span.kind is SpanKind.SERVER]


def test_h81_traces_hold_no_key_and_no_prompt(exported: Exported, tmp_path: Path) -> None:
    """Over HTTP: every request is a trace but the probes', whatever comes of it, and none tells what was sent."""
    rig = make_rig(tmp_path, traces=exported.traces)
    headers = {"authorization": f"Bearer sk-{CANARY}", "traceparent": PARENT, "tracestate": "vendor=1"}
    body = {"model": BASE, "prompt": CANARY, "stop": [CANARY + "!"], "max_tokens": 3}
    with serve(rig.app) as live, live.client(**headers) as client:
        client.get("/livez")
        client.post("/v1/completions", json=body, params={"q": CANARY})
        client.post("/v1/completions", json=body | {"stream": True})
        client.post("/v1/completions", json=body | {"temperature": CANARY})
        client.get(f"/v1/models/{CANARY}")
        eventually(lambda: len(roots_of(exported)) == 4)
        roots = roots_of(exported)
        check_after(client, rig)
    rig.registry.close()
    # counted, because a stream may end after the request that follows it
    statuses = Counter((span.name, (span.attributes or {})["http.response.status_code"]) for span in roots)
    post, get = "POST /v1/completions", "GET /v1/models/{id:path}"
    assert statuses == {(post, 200): 2, (post, 400): 1, (get, 404): 1}
    assert CANARY not in "".join(span.to_json() for span in exported.spans)


def test_without_the_extra_the_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings({"otlp_endpoint": "http://127.0.0.1:4318"})
    monkeypatch.setitem(sys.modules, "server.traces", None)
    with pytest.raises(SettingsError, match=r"--otlp-endpoint.*'\.\[otel\]'"):
        traces_of(settings)


def test_without_the_setting_nothing_is_traced_or_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "server.traces", None)
    assert traces_of(read_settings({})) is None
