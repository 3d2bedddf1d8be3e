"""Pins, warm-up, deletion and failing reads, between the policy and a fake mover."""

import pytest

from adapters.residency import Tier
from engine.errors import AdapterTooLarge
from engine.events import AdapterEvicted, AdapterFailed
from engine.sequence import FinishReason
from engine.tiers import PATIENCE
from tests.support.engine_fakes import Bench, named

A, B, C = named("a"), named("b"), named("c")


def bench_of(**sizes: int) -> Bench:
    return Bench(adapters=sizes, device=100, host=300)


def settle(bench: Bench, steps: int = 4) -> Bench:
    for _ in range(steps):
        bench.step()
    return bench


def test_a_pinned_adapter_loads_by_itself_and_stays() -> None:
    bench = bench_of(a=60, b=40, c=40)
    bench.engine.tiers.pin(A)
    assert not bench.idle()
    settle(bench)
    assert bench.engine.tiers.ready(A) and bench.idle()
    for adapter in "bcbc":
        bench.submit(adapter + str(len(bench.outputs)), adapter=adapter)
        bench.run()
    assert bench.engine.tiers.ready(A)


def test_a_pinned_adapter_that_takes_most_of_the_budget_can_be_used() -> None:
    bench = bench_of(a=60)
    bench.engine.tiers.pin(A)
    bench.submit("r", adapter="a")
    bench.run()
    assert bench.reason("r") is FinishReason.LENGTH


def test_a_pin_is_read_before_what_is_wanted() -> None:
    bench = bench_of(a=60, b=40)
    bench.submit("r", adapter="b")
    bench.engine.tiers.pin(A)
    bench.step()
    assert bench.mover.reads == [A, B]


def test_while_a_pin_is_read_nothing_is_to_be_done_and_nobody_drains() -> None:
    """However long it takes: no eviction would speed it up, and turning round and round would not either."""
    bench = bench_of(a=60, b=40)
    bench.mover.instant = False
    bench.engine.tiers.pin(A)
    bench.step()
    assert bench.idle()
    for _ in range(PATIENCE + 2):
        bench.step()
    assert not bench.engine.tiers.must_drain
    bench.mover.arrive(A)
    assert not bench.idle()
    settle(bench)
    assert bench.engine.tiers.ready(A) and bench.idle()


def test_what_leaves_a_tier_is_told() -> None:
    bench = Bench(adapters={"a": 60, "b": 60}, device=100, host=100)
    for adapter in "ab":
        bench.submit(adapter, adapter=adapter)
        bench.run()
    assert bench.of(AdapterEvicted) == [AdapterEvicted(A, "host"), AdapterEvicted(A, "device")]


def test_pins_count_before_they_are_placed() -> None:
    bench = bench_of(a=60, b=60)
    bench.engine.tiers.pin(A)
    with pytest.raises(AdapterTooLarge, match="40 of 100"):
        bench.engine.tiers.pin(B)
    with pytest.raises(AdapterTooLarge):
        bench.submit("r", adapter="b")


def test_who_loses_his_room_to_a_pin_is_told() -> None:
    bench = bench_of(a=60, b=60)
    bench.mover.instant = False
    bench.submit("r", adapter="b")
    bench.step()
    bench.engine.tiers.pin(A)
    bench.run(steps=5)
    output = bench.outputs["r"][-1]
    assert output.error_code == "adapter_unavailable" and "Unpin" in (output.error or "")


def test_a_pin_that_cannot_be_read_is_given_up() -> None:
    bench = bench_of(a=60, b=60)
    bench.mover.corrupt.add(A)
    bench.engine.tiers.pin(A)
    settle(bench)
    assert bench.mover.reads == [A] and bench.idle()
    assert bench.of(AdapterFailed) == [AdapterFailed(A, "adapter_corrupt")]
    bench.submit("r", adapter="b")
    bench.run()
    assert bench.reason("r") is FinishReason.LENGTH


def test_warming_up_skips_what_cannot_be_served() -> None:
    bench = bench_of(a=60, b=30, c=101)
    bench.engine.tiers.prefetch([A, named("gone"), C, B, A])
    settle(bench)
    assert bench.mover.device == {A, B} and bench.mover.reads == [A, B] and bench.idle()


def test_warm_adapters_give_way() -> None:
    bench = bench_of(a=60, b=60)
    bench.engine.tiers.prefetch([A])
    settle(bench)
    bench.submit("r", adapter="b")
    bench.run()
    assert bench.mover.device == {B}
    settle(bench)
    assert bench.mover.device == {B}, "and do not push back"


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_forgotten_adapter_leaves_nothing_behind(steps: int) -> None:
    bench = bench_of(a=10)
    bench.engine.tiers.prefetch([A])
    settle(bench, steps)
    bench.engine.forget(A)
    bench.step()
    assert bench.mover.host == bench.mover.device == set()
    assert bench.engine.tiers.tier(A) is Tier.DISK and bench.engine.tiers.residency.host_used == 0


@pytest.mark.parametrize("well", [True, False])
def test_forgetting_during_a_read_takes_effect_when_it_ends(well: bool) -> None:
    bench = bench_of(a=10)
    bench.mover.instant = False
    bench.engine.tiers.pin(A)
    bench.step()
    bench.engine.forget(A)
    if not well:
        bench.mover.corrupt.add(A)
    bench.mover.arrive(A)
    settle(bench)
    assert bench.mover.reads == [A] and bench.mover.host == set() and bench.engine.tiers.residency.host_used == 0
    assert bench.idle()


def test_an_adapter_that_is_deleted_and_uploaded_again_during_its_read_is_read_anew() -> None:
    bench = bench_of(a=10)
    bench.mover.instant = False
    bench.engine.tiers.prefetch([A])
    bench.step()
    bench.engine.forget(A)
    bench.mover.corrupt.add(A)
    bench.submit("r", adapter="a")
    bench.mover.arrive(A)
    bench.mover.corrupt.clear()
    bench.step()
    assert bench.mover.reads == [A, A]
    bench.mover.arrive(A)
    bench.run()
    assert bench.reason("r") is FinishReason.LENGTH


def test_nothing_to_do_is_told_apart_from_nothing_that_can_be_done() -> None:
    bench = bench_of(a=10)
    bench.mover.instant = False
    bench.submit("r", adapter="a")
    bench.step()
    assert bench.stalled() and not bench.idle()
    bench.mover.arrive(A)
    bench.run()
    assert not bench.stalled() and bench.idle()
