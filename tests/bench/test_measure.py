"""The order of measurements, what they leave, and what becomes of a target that fails."""

import time
from dataclasses import replace

import pytest

from bench.arrivals import ClosedLoop, Poisson, Replay, Span, TraceLine
from bench.load import LoadResult, RequestTiming
from bench.measure import BASE, Cell, Schedule, Target, measure, to_record
from bench.session import missing_adapters
from bench.workload import Mix
from tests.support.fake_target import FakeTarget

CLOSED = ClosedLoop(2)
BASE_CELL = Cell(BASE, CLOSED, 4)
MIXED = Cell("2 adapters", CLOSED, 4, models=("a0", "a1"), mix=Mix.parse("distinct"), rank=8)
BOTH = frozenset({"a0", "a1"})


def no_failure(target: Target, cell: Cell, error: Exception) -> None:
    raise AssertionError(f"{target.name} failed at {cell.traffic}: {error}")


def test_rounds_are_interleaved_and_the_first_only_warms_up() -> None:
    log: list[str] = []
    targets = [FakeTarget(name, BOTH, log=log) for name in ("ours", "theirs")]
    records = list(measure(targets, Schedule([BASE_CELL, MIXED], 1000, no_failure), rounds=2))
    assert log == ["ours", "theirs"] * 6
    assert [(one.server, one.traffic, one.round) for one in records[:4]] == [
        ("ours", "base", 1),
        ("theirs", "base", 1),
        ("ours", "2 adapters", 1),
        ("theirs", "2 adapters", 1),
    ]
    assert len(records) == 8
    mixed = records[2]
    assert (mixed.adapters, mixed.rank, mixed.mix, mixed.arrivals) == (2, 8, "distinct", "c2")
    assert (mixed.tokens_per_s, mixed.ttft_p50_ms, mixed.itl_p50_ms) == pytest.approx((100, 500, 20))


def test_everybody_is_asked_the_same_and_nothing_twice() -> None:
    ours, theirs = (FakeTarget(name, BOTH) for name in ("ours", "theirs"))
    list(measure([ours, theirs], Schedule([BASE_CELL, MIXED], 1000, no_failure), rounds=2))
    assert ours.seen == theirs.seen
    assert [requests[0].output_tokens for requests in ours.seen] == [2, 2, 64, 64, 64, 64], "warming up is short"
    prompts = [request.prompt for requests in ours.seen for request in requests]
    assert len(prompts) == len(set(prompts)) == 6 * 4


def test_percentiles_are_those_of_all_requests_in_milliseconds() -> None:
    timings = tuple(RequestTiming(ttft_s=n / 10, gaps_s=(n / 1000,), tokens=2) for n in range(101))
    record = to_record(FakeTarget("ours"), BASE_CELL, 1, LoadResult(10.0, timings))
    assert (record.ttft_p50_ms, record.ttft_p95_ms, record.ttft_p99_ms) == pytest.approx((5000, 9500, 9900))
    assert (record.itl_p50_ms, record.itl_p95_ms, record.itl_p99_ms) == pytest.approx((50, 95, 99))
    assert (record.requests, record.tokens_per_s, record.wall_s) == (101, 20.2, 10.0)


def test_a_target_that_fails_is_told_and_the_others_go_on() -> None:
    bad, good = FakeTarget("bad", BOTH, fails_at="a0"), FakeTarget("good", BOTH)
    failures: list[str] = []
    schedule = Schedule([BASE_CELL, MIXED], 1000, lambda who, what, why: failures.append(f"{who.name}: {why}"))
    records = list(measure([bad, good], schedule, 2))
    assert failures == ["bad: out of memory"]
    assert [one.server for one in records] == ["good"] * 4


def test_a_target_is_not_asked_for_adapters_that_it_lacks() -> None:
    bare = FakeTarget("bare")
    records = list(measure([bare], Schedule([BASE_CELL, MIXED], 1000, no_failure), 1))
    assert [one.traffic for one in records] == ["base"]
    assert missing_adapters([bare], [BASE_CELL, MIXED]) == ["bare does not have the adapters of 2 adapters: left out"]


def test_requests_are_drawn_by_seed() -> None:
    cell = Cell("mix", Poisson(2), 20, Span(3, 9), Span(1, 4), ("a0", "a1", "a2"), Mix.parse("uniform"))
    asked = cell.make_requests("base", 1000, seed=4)
    assert asked == cell.make_requests("base", 1000, seed=4) != cell.make_requests("base", 1000, seed=5)
    assert {len(request.prompt) for request in asked} <= set(range(3, 10))
    assert {request.output_tokens for request in asked} <= {1, 2, 3, 4}
    assert {request.model for request in asked} == {"a0", "a1", "a2"}
    steep = replace(cell, mix=Mix.parse("zipf:30"))
    assert {request.model for request in steep.make_requests("base", 1000, seed=4)} == {"a0"}


def test_a_trace_decides_the_lengths() -> None:
    cell = Cell(BASE, Replay("trace", (TraceLine(0, 3, 2), TraceLine(1, 5, 4))), 2)
    assert [(len(request.prompt), request.output_tokens) for request in cell.make_requests("base", 1000, 0)] == [
        (3, 2),
        (5, 4),
    ]


def test_nothing_is_begun_after_the_time() -> None:
    target = FakeTarget("ours", BOTH)
    schedule = Schedule([BASE_CELL, MIXED], 1000, no_failure, minutes=-1)
    assert schedule.out_of_time
    assert not list(measure([target], schedule, 2))
    assert not target.asked
    for since_s, over in ((59, False), (61, True)):
        began = time.monotonic() - since_s
        assert Schedule([], 1000, no_failure, minutes=1, began=began).out_of_time is over
