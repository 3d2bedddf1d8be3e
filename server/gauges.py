"""The state at the moment of a scrape, as gauges, in our names and in the ones gateways look for.

Owns the collectors over the worker's snapshots, over the server's phase and over the catalog. The `vllm:` names are
those of the gateway API's model-server protocol.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.canary import Split
from adapters.catalog import Catalog
from adapters.manifest import AdapterId
from adapters.naming import owner_of
from adapters.version import Version
from engine.snapshot import EngineStats, Resident
from server.metrics import AdapterLabels
from server.ports import Services, Worker
from server.version import version

NameOf = Callable[[AdapterId], str]

MAX_DEVICE_QUOTAS = 10


class Names:
    """`names(id)` is the name whose newest version has this id, else the id itself; so tenants' adapters go by ids.

    It reads the catalog anew each time, so a moved name is never shown stale.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def __call__(self, id: AdapterId) -> str:
        own = (version for version in self._catalog.newest() if not owner_of(version.name))
        return next((version.name for version in own if version.id == id), id)


class EngineCollector(Collector):
    """Reads the worker's snapshots when Prometheus asks. `name_of` gives the name that clients call an adapter by."""

    def __init__(self, worker: Worker, labels: AdapterLabels, name_of: NameOf) -> None:
        self._worker, self._labels, self._name_of = worker, labels, name_of

    def describe(self) -> Iterable[Metric]:
        return ()  # so that registering does not ask an engine that has not started

    def collect(self) -> Iterator[Metric]:
        stats, residents = self._worker.stats(), list(self._worker.residents())
        yield from _own(stats)
        yield from self._adapters(residents)
        yield _device_quotas(self._worker.device_quotas_used())
        yield from _companions(stats)
        yield self._lora_info(stats, residents)

    def _adapters(self, residents: list[Resident]) -> Iterator[Metric]:
        sizes = GaugeMetricFamily("rootstock_adapter_bytes", "Bytes of a resident adapter.", labels=["adapter", "tier"])
        totals: dict[tuple[str, str], int] = {}
        for resident in residents:
            key = (self._labels.label_for(resident.id), resident.tier)
            totals[key] = totals.get(key, 0) + resident.bytes
        for key, total in totals.items():
            sizes.add_metric(key, total)
        yield sizes
        count = GaugeMetricFamily("rootstock_adapters_resident", "Resident adapters.", labels=["tier"])
        for tier in ("device", "host", "merged"):
            count.add_metric([tier], sum(resident.tier == tier for resident in residents))
        yield count

    def _lora_info(self, stats: EngineStats, residents: list[Resident]) -> Metric:
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters with running and with waiting requests; the value is the time of the scrape.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        running = ",".join(sorted({self._name_of(id) for id in stats.running_adapters}))
        waiting = ",".join(sorted({self._name_of(id) for id in stats.waiting_adapters}))
        family.add_metric([str(_room(stats, residents)), running, waiting], time.time())
        return family


class ServerCollector(Collector):
    """Whether the server takes work, and whether its engine comes round, as `/readyz` and `/livez` tell it."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        worker = self._services.worker
        yield GaugeMetricFamily("rootstock_ready", "1 while new requests are taken.", float(self._services.ready))
        yield CounterMetricFamily("rootstock_engine_restarts", "Engines that failed, replaced.", worker.restarts)
        yield GaugeMetricFamily("rootstock_engine_alive", "1 while the engine's thread is up.", float(worker.alive))
        yield GaugeMetricFamily(
            "rootstock_engine_silent_seconds", "Since the engine's thread last came round.", worker.silent_s
        )
        yield GaugeMetricFamily(
            "rootstock_answers_in_progress", "Answers that a drain would wait for.", self._services.lifecycle.in_flight
        )
        about = {"version": version(), "base": self._services.base_id}
        yield InfoMetricFamily("rootstock_build", "What this server is, and the base it serves.", about)


class CatalogCollector(Collector):
    """Which two versions an alias's traffic is split between, and how many adapters are damaged.

    Ids only: whose alias it is, the cards tell.
    """

    def __init__(
        self,
        splits: Callable[[], Iterable[Split[Version]]],
        quarantined: Callable[[], Sized],
        labels: AdapterLabels,
    ) -> None:
        self._splits, self._quarantined, self._labels = splits, quarantined, labels

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        about = "Stored adapters that were found damaged and have not been uploaded again."
        yield GaugeMetricFamily("rootstock_adapters_quarantined", about, len(self._quarantined()))
        yield self._canaries()

    def _canaries(self) -> Metric:
        weights: dict[tuple[str, str], float] = {}
        for split in self._splits():
            if split.canary is not None:
                pair = self._labels.label_for(split.stable.id), self._labels.label_for(split.canary.id)
                weights[pair] = max(split.weight, weights.get(pair, 0.0))
        about = "Share of an alias's traffic that its canary gets; the largest, where several aliases try the same."
        family = GaugeMetricFamily("rootstock_canary_weight", about, labels=["stable", "canary"])
        for pair, weight in weights.items():
            family.add_metric(list(pair), weight)
        return family


def _room(stats: EngineStats, residents: list[Resident]) -> int:
    """How many adapters of the usual size fit the device budget: there is no fixed number of slots to report."""
    sizes = [resident.bytes for resident in residents if resident.tier == "device" and resident.bytes]
    if not sizes:
        return 64
    return max(int(stats.device_bytes_total // (sum(sizes) / len(sizes))), len(sizes))


def _own(stats: EngineStats) -> Iterator[Metric]:
    requests = GaugeMetricFamily("rootstock_sequences", "Sequences in the engine.", labels=["state"])
    requests.add_metric(["running"], stats.running)
    requests.add_metric(["waiting"], stats.waiting)
    yield requests
    blocks = GaugeMetricFamily("rootstock_kv_blocks", "Blocks of the KV cache.", labels=["state"])
    blocks.add_metric(["used"], stats.blocks_used)
    blocks.add_metric(["total"], stats.blocks_total)
    yield blocks
    pool = GaugeMetricFamily("rootstock_adapter_pool_bytes", "Adapter memory.", labels=["tier", "state"])
    pool.add_metric(["device", "used"], stats.device_bytes_used)
    pool.add_metric(["device", "total"], stats.device_bytes_total)
    pool.add_metric(["host", "used"], stats.host_bytes_used)
    pool.add_metric(["host", "total"], stats.host_bytes_total)
    yield pool
    yield CounterMetricFamily("rootstock_prefix_hit_tokens", "Tokens found in the prefix cache.", stats.prefix_hits)
    yield CounterMetricFamily("rootstock_prefix_query_tokens", "Tokens looked up there.", stats.prefix_queries)


def _device_quotas(used: Sequence[float]) -> Metric:
    """By how full they are, not by whose they are: whoever may see metrics need not know who else is served."""
    about = "Part of a tenant's device quota that is in use, for the fullest ones; place 1 is the fullest."
    family = GaugeMetricFamily("rootstock_device_share_used", about, labels=["place"])
    for place, part in enumerate(used[:MAX_DEVICE_QUOTAS], 1):
        family.add_metric([str(place)], part)
    return family


def _companions(stats: EngineStats) -> Iterator[Metric]:
    usage = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
    yield GaugeMetricFamily("vllm:num_requests_running", "Sequences running.", stats.running)
    yield GaugeMetricFamily("vllm:num_requests_waiting", "Sequences waiting.", stats.waiting)
    yield GaugeMetricFamily("vllm:kv_cache_usage_perc", "Used part of the KV cache, 0 to 1.", usage)
