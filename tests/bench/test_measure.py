"""The order of measurements, what they leave, and what becomes of a target that fails."""

import pytest

from bench.arrivals import ClosedLoop, Poisson, Replay, Span, TraceLine
from bench.measure import BASE, Cell, Schedule, Target, measure
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
