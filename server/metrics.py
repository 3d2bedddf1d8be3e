"""What is counted, in one Prometheus registry that belongs to one server.

Owns the metric names (`rootstock_*`), the bound on adapter labels, and the observer that the engine
calls on its own thread. Knows the engine's events; the gauges over its state are in `gauges.py`.
"""

import threading
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from adapters.canary import Split
from adapters.manifest import AdapterId
from adapters.version import Version
from engine.events import (
    AdapterEvicted,
    AdapterFailed,
    AdapterLoaded,
    Admitted,
    Event,
    Finished,
    FirstToken,
    NextToken,
    Preempted,
    StepDone,
)

MAX_ADAPTER_LABELS = 50

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STEP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class AdapterLabels:
    """Adapter ids as label values: the first `limit` ids seen by their short digest, all later ones as `other`.

    Versions that are compared in a canary are told apart beyond that, up to as many again, while they are compared.
    """

    def __init__(self, limit: int = MAX_ADAPTER_LABELS) -> None:
        self._limit = limit
        self._first: dict[AdapterId, str] = {}
        self._compared: dict[AdapterId, str] = {}
        self._lock = threading.Lock()

    def label_for(self, adapter: AdapterId | None) -> str:
        if adapter is None:
            return "base"
        with self._lock:
            if adapter in self._compared:
                return self._compared[adapter]
            if adapter not in self._first and len(self._first) < self._limit:
                self._first[adapter] = _short(adapter)
            return self._first.get(adapter, "other")

    def compare(self, adapters: Iterable[AdapterId]) -> None:
        """`adapters` are all that are compared now; those that were and have a label keep it."""
        with self._lock:
            wanted = [adapter for adapter in dict.fromkeys(adapters) if adapter not in self._first]
            wanted.sort(key=lambda adapter: adapter not in self._compared)
            self._compared = {adapter: _short(adapter) for adapter in wanted[: self._limit]}

    def every(self) -> frozenset[str]:
        with self._lock:
            return frozenset({"base", "other", *self._first.values(), *self._compared.values()})


def _compared(split: Split[Version]) -> tuple[AdapterId, ...]:
    return () if split.canary is None else (split.stable.id, split.canary.id)


def _short(adapter: AdapterId) -> str:
    return adapter.removeprefix("sha256:")[:12]


class Metrics:
    """All counters and histograms of one server. `observe` is an engine observer; any thread may call it."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.labels = AdapterLabels()
        self._comparing = threading.Lock()
        self._by_adapter: list[Counter] = []
        self._counters()
        self._histograms()
        ProcessCollector(registry=self.registry)

    def observe(self, event: Event) -> None:
        match event:
            case StepDone():
                self._step_seconds.observe(event.seconds)
                self._step_tokens.observe(event.tokens)
            case NextToken():
                self._inter_token.observe(event.gap_s)
            case FirstToken():
                self._ttft.observe(event.ttft_s)
            case Admitted():
                self._admitted(event)
            case Finished():
                self._finished(event)
            case Preempted():
                self._preemptions.inc()
            case AdapterLoaded() | AdapterEvicted():
                self._moved(event)
            case AdapterFailed():
                self._load_failures.labels(self.labels.label_for(event.adapter), event.code).inc()

    def label_canaries(self, splits: Callable[[], Iterable[Split[Version]]]) -> None:
        """Give canaries' versions labels before their requests are counted, and not at the first scrape."""
        self.compare(lambda: [id for split in splits() for id in _compared(split)])

    def compare(self, compared: Callable[[], Iterable[AdapterId]]) -> None:
        """Give labels to the versions that canaries compare, as `compared` says now, and take back those of canaries
        that ended, with what was counted under them.

        It is asked under a lock, so that of two changes the later one is what holds.
        """
        with self._comparing:
            self.labels.compare(compared())
            for counter in self._by_adapter:
                shown = {sample.labels["adapter"] for family in counter.collect() for sample in family.samples}
                for label in shown - self.labels.every():
                    counter.remove_by_labels({"adapter": label})

    def http(self, route: str, method: str, status: int) -> None:
        self._http.labels(route, method, str(status)).inc()

    def error(self, code: str | int) -> None:
        """A client was told an error. Codes are words of ours, so there are only as many as the docs list."""
        self._errors.labels(str(code)).inc()

    def loop_lag(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    def _admitted(self, event: Admitted) -> None:
        adapter = self.labels.label_for(event.adapter)
        self._queue.observe(event.queue_s)
        self._prompt_tokens.labels(adapter).inc(event.prompt_tokens)
        self._cached_tokens.labels(adapter).inc(event.cached_tokens)
        self._tier_hits.labels(adapter, event.tier).inc()

    def _finished(self, event: Finished) -> None:
        adapter = self.labels.label_for(event.adapter)
        self._requests.labels(adapter, event.reason.value).inc()
        self._generated_tokens.labels(adapter).inc(event.generated_tokens)
        self._request_seconds.observe(event.seconds)

    def _moved(self, event: AdapterLoaded | AdapterEvicted) -> None:
        adapter = self.labels.label_for(event.adapter)
        if isinstance(event, AdapterEvicted):
            self._evictions.labels(adapter, event.tier).inc()
            return
        self._load_seconds.labels(event.tier).observe(event.seconds)
        self._loads.labels(adapter, event.tier).inc()
        self._loaded_bytes.labels(adapter, event.tier).inc(event.bytes)

    def _counters(self) -> None:
        self._http = self._counter("http_requests", "HTTP requests answered.", "route", "method", "status")
        self._errors = self._counter("errors", "Errors told to clients, by the code in their body.", "code")
        self._requests = self._counter("requests", "Sequences finished.", "adapter", "reason")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens admitted.", "adapter")
        self._cached_tokens = self._counter("cached_tokens", "Prompt tokens found in the prefix cache.", "adapter")
        self._generated_tokens = self._counter("generated_tokens", "Tokens generated.", "adapter")
        self._tier_hits = self._counter("adapter_tier_hits", "Where a request's adapter was.", "adapter", "tier")
        self._loads = self._counter("adapter_loads", "Adapter loads, by the tier read from.", "adapter", "tier")
        self._loaded_bytes = self._counter(
            "adapter_loaded_bytes", "Bytes loaded, by the tier read from.", "adapter", "tier"
        )
        self._evictions = self._counter("adapter_evictions", "Adapters evicted, by tier left.", "adapter", "tier")
        self._load_failures = self._counter(
            "adapter_load_failures", "Adapters that could not be loaded.", "adapter", "code"
        )
        self._preemptions = self._counter("preemptions", "Sequences put back for want of KV blocks.")

    def _histograms(self) -> None:
        self._queue = self._histogram("queue_seconds", "From arrival to admission.", _LATENCY)
        self._ttft = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", _LATENCY)
        self._inter_token = self._histogram("inter_token_seconds", "Between two tokens of a sequence.", _STEP)
        self._request_seconds = self._histogram("request_seconds", "From arrival to the last token.", _LATENCY)
        self._load_seconds = self._histogram("adapter_load_seconds", "Adapter loads, by source.", _LATENCY, "tier")
        self._step_seconds = self._histogram("step_seconds", "Engine steps.", _STEP)
        self._loop_lag = self._histogram("event_loop_lag_seconds", "How late the event loop wakes.", _STEP)
        self._step_tokens = self._histogram("step_tokens", "Tokens computed in a step.", _TOKENS)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        made = Counter(f"rootstock_{name}", about, labels, registry=self.registry)
        self._by_adapter += [made] if "adapter" in labels else []
        return made

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"rootstock_{name}", about, labels, buckets=buckets, registry=self.registry)
