"""The dashboard and the alert rules, held against what a server exports and against the docs."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from adapters.canary import Canary
from adapters.manifest import AdapterId
from engine.events import (
    AdapterEvicted,
    AdapterFailed,
    AdapterLoaded,
    Admitted,
    Finished,
    FirstToken,
    NextToken,
    Preempted,
    StepDone,
)
from engine.sequence import FinishReason
from tests.support import prometheus
from tests.support.http import eventually, serve
from tests.support.promql import Exported, exported, faults, kept, names
from tests.support.server_rig import ServerRig, make_rig, write_adapter

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/rootstock.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
OBSERVABILITY = (ROOT / "docs/observability.md").read_text()

ONE = AdapterId(f"sha256:{1:064x}")
EVENTS = (
    Admitted("r", ONE, "disk", 0.1, 0.2, 10, 4),
    FirstToken("r", ONE, 0.2),
    NextToken(ONE, 0.01),
    Finished("r", ONE, FinishReason.STOP, 7, 1.0),
    Finished("r", ONE, FinishReason.ERROR, 1, 1.0),
    AdapterLoaded(ONE, "disk", 0.3, 1000),
    AdapterEvicted(ONE, "device"),
    AdapterFailed(ONE, "adapter_corrupt"),
    Preempted("r", None),
    StepDone(0.01, 5, 2),
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectorRegistry]:
    """A live server's, after one of everything."""
    rig = make_rig(tmp_path_factory.mktemp("rig"))
    one_of_everything(rig)
    yield rig.services.metrics.registry
    rig.registry.close()


def one_of_everything(rig: ServerRig) -> None:
    metrics = rig.services.metrics
    for event in EVENTS:
        metrics.observe(event)
    metrics.http("/v1/models", "GET", 200)
    metrics.error("queue_full")
    metrics.loop_lag(0.0)
    rig.worker.pinned.add(ONE)
    rig.worker.device_quotas = (1.0, 0.5)
    for seed in (1, 2):
        rig.catalog.add_directory("tried", write_adapter(rig.folder / f"seed-{seed}", seed))
    rig.catalog.set_alias("tried", "prod", 1, canary=Canary(2, 0.1))


@pytest.fixture(scope="module")
def known(registry: CollectorRegistry) -> dict[str, Exported]:
    return exported(registry)


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Every expression of the dashboard with its panel's title; Grafana's own variables are filled in."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".+"))
        for panel in panels()
        for target in panel["targets"]
    ]


@pytest.mark.parametrize(("title", "expression"), queries())
def test_a_panel_asks_for_what_is_exported(title: str, expression: str, known: dict[str, Exported]) -> None:
    assert not faults(expression, known)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_what_is_exported(rule: dict[str, Any], known: dict[str, Exported]) -> None:
    assert not faults(rule["expr"], known)
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    assert f"`{rule['alert']}`" in OBSERVABILITY, "an alert without a word on what to do about it"


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("rootstock_nothing", "not exported"),
        ("rate(rootstock_ready[5m])", "a gauge"),
        ("histogram_quantile(0.9, sum by (le) (rate(rootstock_requests_total[5m])))", "no label le"),
        ("histogram_quantile(0.9, sum by (tier) (rate(rootstock_adapter_load_seconds_bucket[5m])))", "lost their `le`"),
        ("histogram_quantile(0.9, sum by (le) (rate(rootstock_step_seconds_sum[5m])))", "no buckets"),
        ("sum by (tenant) (rootstock_sequences)", "no label tenant"),
        ('rootstock_kv_blocks{room="used"}', "no label room"),
        ("sum(rate(rootstock_requests_total[5m])", "does not parse"),
    ],
)
def test_the_lint_finds_what_it_is_for(expression: str, fault: str, known: dict[str, Exported]) -> None:
    assert any(fault in found for found in faults(expression, known))


def test_every_metric_is_in_the_docs_and_no_other(registry: CollectorRegistry) -> None:
    suffixes = {"counter": "_total", "info": "_info"}
    families = {family.name + suffixes.get(family.type, ""): family.type for family in registry.collect()}
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in OBSERVABILITY.splitlines()]
    documented = {row[1]: row[2] for row in rows if len(row) > 4 and row[1].startswith(("rootstock_", "vllm:"))}
    assert documented == {name: type for name, type in families.items() if not name.startswith("process_")}


def test_the_dashboard_shows_what_an_operator_asks_first() -> None:
    shown = {name for _, expression in queries() for name in names(expression)}
    assert shown >= {
        "rootstock_requests_total",
        "rootstock_errors_total",
        "rootstock_time_to_first_token_seconds_bucket",
        "rootstock_inter_token_seconds_bucket",
        "rootstock_queue_seconds_bucket",
        "rootstock_kv_blocks",
        "rootstock_adapter_tier_hits_total",
        "rootstock_adapter_loads_total",
        "rootstock_prefix_hit_tokens_total",
        "rootstock_step_seconds_bucket",
        "rootstock_engine_restarts_total",
        "rootstock_canary_weight",
        "rootstock_adapters_quarantined",
        "rootstock_device_share_used",
    }


def test_every_panel_has_a_unit_a_word_on_what_it_shows_and_legends_of_labels_that_are_kept() -> None:
    """`{{tier}}` in a legend is empty unless the query still has that label."""
    for panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"] and panel["description"].endswith("."), panel["title"]
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert shown == kept(target["expr"].replace("$__rate_interval", "1m")), panel["title"]


def test_no_panel_lies_on_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_is_given_the_rules_and_a_job_that_they_name() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    assert [job["job_name"] for job in config["scrape_configs"]] == ["rootstock"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Prometheus, is not here")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "deploy/prometheus/prometheus.yml"),
        ("check", "rules", "deploy/prometheus/alerts.yml"),
        ("test", "rules", "tests/deploy/alerts.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_own_tool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_seen_to_fire() -> None:
    """`promtool test rules` says when; here, that none was left out."""
    tested = (ROOT / "tests/deploy/alerts.yml").read_text()
    assert not [rule["alert"] for rule in RULES if f'alertname="{rule["alert"]}"' not in tested]


@pytest.mark.skipif(not prometheus.HERE, reason="prometheus is not here")
def test_a_real_prometheus_has_something_to_show_on_every_panel(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "rig")
    rules = ROOT / "deploy/prometheus/alerts.yml"
    with serve(rig.app) as live, prometheus.scraping(live.url.removeprefix("http://"), rules, tmp_path) as watching:
        eventually(watching.scrapes, within_s=30)
        one_of_everything(rig)
        eventually(lambda: watching.query("rootstock_requests_total"), within_s=30)
        one_of_everything(rig)
        eventually(lambda: watching.query("increase(rootstock_requests_total[1m]) > 0"), within_s=30)
        assert not [(title, expression) for title, expression in queries() if not watching.query(expression)]
        assert not watching.sick_rules()
    rig.registry.close()
