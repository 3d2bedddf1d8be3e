"""What a scrape tells of the state at its moment."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from adapters.manifest import AdapterId
from adapters.tenant_catalog import TenantCatalog
from engine.snapshot import EngineStats, Resident
from server.gauges import EngineCollector, Names, ServerCollector
from server.lifecycle import Lifecycle
from server.metrics import AdapterLabels
from server.version import version
from tests.support.engine import FakeWorker
from tests.support.server_rig import BASE, make_rig, write_adapter


def id_of(number: int) -> AdapterId:
    return AdapterId(f"sha256:{number:012x}{0:052x}")


NAMES = {id_of(1): "one", id_of(2): "two", id_of(3): "three"}
BUSY = EngineStats(
    running=2,
    waiting=3,
    blocks_total=40,
    blocks_used=5,
    prefix_queries=600,
    prefix_hits=70,
    device_bytes_used=3000,
    device_bytes_total=9000,
    host_bytes_used=1100,
    host_bytes_total=12000,
    running_adapters=(id_of(1), id_of(2)),
    waiting_adapters=(id_of(3),),
    merged=id_of(4),
)
GAUGES = {
    ("rootstock_sequences", "running"): BUSY.running,
    ("rootstock_sequences", "waiting"): BUSY.waiting,
    ("rootstock_kv_blocks", "used"): BUSY.blocks_used,
    ("rootstock_kv_blocks", "total"): BUSY.blocks_total,
    ("rootstock_adapter_pool_bytes", "device used"): BUSY.device_bytes_used,
    ("rootstock_adapter_pool_bytes", "device total"): BUSY.device_bytes_total,
    ("rootstock_adapter_pool_bytes", "host used"): BUSY.host_bytes_used,
    ("rootstock_adapter_pool_bytes", "host total"): BUSY.host_bytes_total,
    ("rootstock_prefix_query_tokens_total", ""): BUSY.prefix_queries,
    ("rootstock_prefix_hit_tokens_total", ""): BUSY.prefix_hits,
    ("rootstock_adapters_resident", "device"): 2,
    ("rootstock_adapters_resident", "host"): 1,
    ("rootstock_adapters_resident", "merged"): 1,
    ("rootstock_adapter_bytes", "000000000001 device"): 1000,
    ("rootstock_adapter_bytes", "000000000002 device"): 2000,
    ("rootstock_adapter_bytes", "000000000003 host"): 1100,
    ("rootstock_adapter_bytes", "000000000004 merged"): 500,
    ("rootstock_device_share_used", "1"): 0.75,
    ("rootstock_device_share_used", "2"): 0.5,
    ("vllm:num_requests_running", ""): BUSY.running,
    ("vllm:num_requests_waiting", ""): BUSY.waiting,
    ("vllm:kv_cache_usage_perc", ""): 5 / 40,
}


class BusyWorker(FakeWorker):
    """No two of its figures are alike."""

    def stats(self) -> EngineStats:
        return BUSY

    def residents(self) -> Sequence[Resident]:
        return [
            Resident(id_of(1), "device", 1000, pinned=True),
            Resident(id_of(2), "device", 2000),
            Resident(id_of(3), "host", 1100),
            Resident(id_of(4), "merged", 500),
        ]

    def device_quotas_used(self) -> Sequence[float]:
        return (0.75, 0.5)


@pytest.fixture
def scraped() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(EngineCollector(BusyWorker(), AdapterLabels(), NAMES.__getitem__))
    return registry


def test_each_gauge_has_its_own_figure_and_there_is_no_other(scraped: CollectorRegistry) -> None:
    told = {
        (sample.name, " ".join(sample.labels.values())): sample.value
        for family in scraped.collect()
        for sample in family.samples
        if sample.name != "vllm:lora_requests_info"
    }
    assert told == GAUGES
    figures = [getattr(BUSY, field.name) for field in fields(EngineStats) if field.type is int]
    assert len(figures) == len(set(figures)) > 0, "otherwise two could be confused"


def test_gateways_find_adapters_by_the_names_that_clients_use(scraped: CollectorRegistry) -> None:
    """The usual adapter here has 1500 bytes, of which the device holds six."""
    labels = {"max_lora": "6", "running_lora_adapters": "one,two", "waiting_lora_adapters": "three"}
    assert scraped.get_sample_value("vllm:lora_requests_info", labels) is not None


def test_an_adapter_goes_by_its_name_and_a_tenants_by_its_id(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    ours, _ = rig.catalog.add_directory("ours", write_adapter(tmp_path / "1", seed=1))
    theirs, _ = TenantCatalog(rig.catalog, "acme").add_directory("theirs", write_adapter(tmp_path / "2", seed=2))
    names = Names(rig.catalog)
    assert (names(ours.id), names(theirs.id)) == ("ours", theirs.id)
    rig.registry.close()


def test_a_scrape_tells_the_phase_and_the_engine(tmp_path: Path) -> None:
    worker, life = FakeWorker(silent_s=7.0), Lifecycle()
    registry = CollectorRegistry()
    registry.register(ServerCollector(replace(make_rig(tmp_path, worker).services, lifecycle=life)))
    assert registry.get_sample_value("rootstock_ready") == 0
    life.ready()
    with life.answering():
        assert registry.get_sample_value("rootstock_answers_in_progress") == 1
    assert registry.get_sample_value("rootstock_ready") == 1
    assert registry.get_sample_value("rootstock_engine_silent_seconds") == 7
    assert registry.get_sample_value("rootstock_build_info", {"base": BASE, "version": version()}) == 1
    worker.alive = False
    assert registry.get_sample_value("rootstock_ready") == registry.get_sample_value("rootstock_engine_alive") == 0
