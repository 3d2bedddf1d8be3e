"""The flood's bench: whose requests are counted, how it judges, and what it tells."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.api import Vllm
from bench.arrivals import Span
from bench.errors import BenchError
from bench.flood import FloodSetup, Phase, Traffic, judge, measure, table
from server.principal import Scope
from tests.support.engine import FakeWorker
from tests.support.http import eventually, serve
from tests.support.keys import guarded_rig, headers_of
from tests.support.server_rig import BASE

TRAFFIC = Traffic(3, Span(4, 8), Span(3, 3), 0.001, 2, Span(5, 5), Span(4, 9), settle_s=0.05)


def phase(round_: int, flooded: bool, *ttft_ms: float) -> Phase:
    return Phase(round_, flooded, ttft_ms, (1.0,), 0.0, 0.0)


def test_each_round_is_judged_by_itself_and_their_median_counts() -> None:
    """A machine that is twice as slow in one round changes nothing: it was so in both phases."""
    phases = [
        phase(1, False, 10, 10, 90), phase(1, True, 15, 15, 15),
        phase(2, False, 20, 20, 20), phase(2, True, 30, 30, 300),
        phase(3, False, 10, 10, 10), phase(3, True, 80, 80, 80),
    ]  # fmt: skip
    verdict = judge(phases, most=1.5)
    assert verdict.ratios == (1.5, 1.5, 8)
    assert verdict.ratio == 1.5 and verdict.holds
    assert verdict.ratio_p95 == pytest.approx(212 / 62), "of all requests"
    assert not judge(phases, most=1.4).holds


def test_both_tenants_are_served_under_their_own_names(tmp_path: Path) -> None:
    worker = FakeWorker()
    with guarded_rig(tmp_path, worker=worker) as (rig, store), serve(rig.app) as live:
        quiet, flood = (Vllm(headers=headers_of(store, name, Scope.INFER)) for name in ("quiet", "flood"))
        setup = FloodSetup(live.url, BASE, 256, quiet, flood, TRAFFIC)
        phases = list(measure(setup, rounds=2))
        eventually(lambda: not worker.running)
    asked = {name: [each for each in worker.seen if each.tenant == name] for name in ("quiet", "flood")}
    assert len(asked["quiet"]) == 1 + 4 * (TRAFFIC.requests + 1), "one to warm up, and one in each phase"
    assert len({each.prompt for each in asked["quiet"]}) == len(asked["quiet"]), "none is in the cache"
    assert len(asked["flood"]) > 2 * TRAFFIC.streams, "a stream that ends is followed by another"
    assert [(one.round, one.flooded) for one in phases] == [(1, False), (1, True), (2, False), (2, True)]
    for one in phases:
        assert (len(one.ttft_ms), len(one.itl_ms)) == (3, 6)
        assert (one.flood_tokens_per_s > 0) == one.flooded


def test_a_flood_that_is_refused_is_told(tmp_path: Path) -> None:
    with guarded_rig(tmp_path) as (rig, store), serve(rig.app) as live:
        quiet, flood = Vllm(headers=headers_of(store, "quiet")), Vllm(headers=headers_of(store, "flood", Scope.READ))
        with pytest.raises(BenchError, match="403.*scope_missing"):
            list(measure(FloodSetup(live.url, BASE, 256, quiet, flood, replace(TRAFFIC, settle_s=5)), rounds=1))


def test_it_is_told_in_a_table() -> None:
    phases = [phase(1, False, 100, 120), phase(1, True, 150, 180)]
    console = Console(width=120, record=True, file=StringIO())
    console.print(table("beside others", phases, judge(phases, 2)))
    printed = console.export_text()
    assert all(text in printed for text in ("110 ms", "165 ms", "1.50", "TTFT p50", "flood tok/s"))
