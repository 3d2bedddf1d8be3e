"""Who computes what in each step, watched from outside: the real engine between fakes, in milliseconds."""

import pytest

from adapters.device_quotas import DeviceQuota, DeviceQuotas
from engine.fairness import VirtualCounters
from engine.scheduler import MULTI_TENANT_STEPS, PROMPT_BUDGET_DIVISOR, StepPlan
from engine.sequence import FinishReason, SamplingParams
from tests.support.engine_fakes import Bench, expected_tokens, named


def shape(plan: StepPlan | None) -> list[tuple[str, int, int]]:
    assert plan is not None
    return [(chunk.sequence.id, chunk.start, chunk.count) for chunk in plan.chunks]


def test_a_long_prompt_is_computed_in_chunks_under_the_budget() -> None:
    bench = Bench(batch_tokens=8)
    request = bench.submit("long", range(20), max_tokens=2)
    assert [shape(bench.step()) for _ in range(4)] == [
        [("long", 0, 8)], [("long", 8, 8)], [("long", 16, 4)], [("long", 20, 1)],
    ]  # fmt: skip
    assert bench.tokens("long") == expected_tokens(request)


def test_decoding_comes_before_a_long_prompt() -> None:
    bench = Bench(batch_tokens=8)
    bench.submit("short", [1], max_tokens=10)
    bench.step()
    bench.submit("long", range(20))
    assert shape(bench.step()) == [("short", 1, 1), ("long", 0, 7)]
    assert shape(bench.step()) == [("short", 2, 1), ("long", 7, 7)]


def test_a_later_decoder_still_goes_before_an_earlier_prompt() -> None:
    bench = Bench(batch_tokens=8)
    bench.submit("short", [1, 2], max_tokens=10)
    bench.submit("long", range(100), max_tokens=1)
    bench.step()
    assert shape(bench.step())[0] == ("short", 2, 1)
    bench.submit("late", [7], max_tokens=10)
    bench.run()
    assert all(plan.num_tokens <= 8 for plan in bench.runner.plans)


def test_seats_are_kept() -> None:
    bench = Bench(sequences=2)
    for number in range(5):
        bench.submit(str(number), [1], max_tokens=3)
    bench.run()
    assert max(len(plan.chunks) for plan in bench.runner.plans) == 2
    assert all(bench.reason(str(number)) is FinishReason.LENGTH for number in range(5))


def test_a_known_prefix_is_not_computed_again() -> None:
    bench = Bench()
    bench.submit("first", range(10))
    bench.run()
    request = bench.submit("second", [*range(10), 50])
    assert shape(bench.step()) == [("second", 8, 3)]
    bench.run()
    assert bench.tokens("second") == expected_tokens(request)
    admission = bench.outputs["second"][0].admission
    assert admission is not None and admission.cached_tokens == 8
    scheduler = bench.engine.scheduler
    assert (scheduler.prefix_tokens_asked, scheduler.prefix_tokens_found) == (21, 8)


def test_of_a_fully_known_prompt_the_last_block_is_computed_for_its_logits() -> None:
    bench = Bench()
    bench.submit("first", range(8))
    bench.run()
    bench.submit("again", range(8))
    assert shape(bench.step()) == [("again", 4, 4)]


@pytest.mark.parametrize(("adapter", "tenant"), [("a", ""), ("b", "acme"), (None, "acme"), ("a", "other")])
def test_another_adapter_or_tenant_is_another_prefix(adapter: str | None, tenant: str) -> None:
    bench = Bench(adapters={"a": 1, "b": 1})
    bench.submit("first", range(8), adapter="a", tenant="acme")
    bench.run()
    bench.submit("same", range(8), adapter="a", tenant="acme")
    assert shape(bench.step()) == [("same", 4, 4)]
    bench.run()
    bench.submit("other", range(8), adapter=adapter, tenant=tenant)
    bench.run()
    admission = bench.outputs["other"][0].admission
    assert admission is not None and admission.cached_tokens == 0


def test_generated_tokens_are_a_prefix_too() -> None:
    bench = Bench()
    request = bench.submit("turn 1", range(6), max_tokens=8)
    bench.run()
    bench.submit("turn 2", [*range(6), *expected_tokens(request), 3])
    assert shape(bench.step()) == [("turn 2", 12, 3)]


@pytest.mark.parametrize("blocks", [8, 9, 12, 20])
def test_g71_preemption_by_recomputation_changes_no_token(blocks: int) -> None:
    bench = Bench(blocks=blocks)
    requests = [bench.submit(str(n), range(n, n + 6), max_tokens=20) for n in range(4)]
    bench.run()
    assert bench.events and (blocks == 20 or any(plan.preempted for plan in bench.runner.plans))
    for request in requests:
        assert bench.tokens(request.id) == expected_tokens(request)
    assert bench.engine.pool.num_used == 0


def test_the_last_to_come_is_preempted_and_comes_back_first() -> None:
    bench = Bench(blocks=4)
    for name in ("old", "young"):
        bench.submit(name, [1, 2, 3], max_tokens=12)
    while not any(plan.preempted for plan in bench.runner.plans):
        bench.step()
    assert [s.id for s in bench.runner.plans[-1].preempted] == ["young"]
    bench.submit("later", [1])
    assert [s.id for s in bench.engine.scheduler.waiting] == ["young", "later"]
    bench.run()
    assert bench.engine.scheduler.prefix_tokens_asked == 7, "coming back is not asking again"


def test_nobody_overtakes_who_waits_for_blocks() -> None:
    bench = Bench(blocks=4)
    bench.submit("holder", range(9), max_tokens=4)
    bench.step()
    bench.submit("big", range(10, 18), max_tokens=1)
    bench.submit("small", [1], max_tokens=1)
    bench.step()
    assert [s.id for s in bench.engine.scheduler.waiting] == ["big", "small"]
    bench.run()


def test_nothing_waits_behind_a_loading_adapter_however_long_it_takes() -> None:
    bench = Bench(adapters={"slow": 10, "here": 10}, patience=3)
    bench.submit("warm", adapter="here")
    bench.run()
    bench.mover.instant = False
    bench.submit("waits", adapter="slow")
    for number in range(12):
        bench.submit(f"passes {number}", adapter=("here", None)[number % 2])
        bench.run_until(f"passes {number}")
    assert bench.reason("waits") is None
    bench.mover.arrive(named("slow"))
    bench.run()
    assert bench.reason("waits") is FinishReason.LENGTH


@pytest.mark.parametrize("quota", [DeviceQuota(), DeviceQuota(adapters=1)], ids=["unlimited", "limited"])
def test_one_adapter_does_not_starve_another_that_finds_no_room(quota: DeviceQuota) -> None:
    """Room for one adapter, and A, B, A, A, A, ... without end. A quota that has room for B is no reason to wait."""
    bench = Bench(adapters={"a": 60, "b": 60}, device=100, patience=8, quotas=DeviceQuotas(tenants={"b": quota}))
    bench.submit("a0", adapter="a", max_tokens=5)
    bench.run_until("a0")
    bench.submit("a1", adapter="a", max_tokens=5)
    bench.step()
    bench.submit("b", adapter="b", max_tokens=5, tenant="b")
    for turn in range(60):
        bench.submit(f"a late {turn}", adapter="a", max_tokens=5)
        bench.step()
        if bench.reason("b"):
            break
    # 8 may pass, those running end within 5 steps, then b is placed and takes 5 steps
    assert turn <= 8 + 2 * 5 + 8
    bench.run()
    assert all(bench.reason(id) is FinishReason.LENGTH for id in bench.outputs)


def test_the_base_passes_an_impatient_sequence() -> None:
    bench = Bench(adapters={"a": 60, "b": 60}, patience=0)
    bench.submit("a", adapter="a", max_tokens=40)
    bench.step()
    bench.step()
    bench.submit("b", adapter="b")
    bench.submit("base")
    bench.run_until("base")
    assert bench.reason("b") is None and bench.reason("a") is None


def test_d45_many_adapters_share_room_for_two() -> None:
    names = [f"adapter {n:02}" for n in range(12)]
    bench = Bench(adapters=dict.fromkeys(names, 50), device=100, host=300)
    requests = [bench.submit(f"{n}", [n], adapter=names[n * 7 % 12], max_tokens=3) for n in range(48)]
    steps = bench.run()
    for request in requests:
        assert bench.tokens(request.id) == expected_tokens(request)
    assert steps < 48 * 8
    assert len(bench.mover.reads) <= 48, "at most one read a request"


def test_prompt_logprobs_take_no_shortcut() -> None:
    bench = Bench()
    bench.submit("first", range(8))
    bench.run()
    bench.submit("scored", range(8), params=SamplingParams(max_tokens=1, prompt_logprobs=0))
    assert shape(bench.step()) == [("scored", 0, 8)]


def test_a_newcomers_first_step_is_its_own_but_prompts_pause_for_none_twice_in_a_row() -> None:
    bench = Bench(batch_tokens=8)
    bench.submit("long", range(100), max_tokens=1, tenant="flood")
    bench.step()
    bench.submit("a", [1, 2], max_tokens=9, tenant="a")
    assert shape(bench.step()) == [("a", 0, 2)]
    bench.submit("b", [1, 2], max_tokens=9, tenant="b")
    assert shape(bench.step()) == [("a", 2, 1), ("b", 0, 2), ("long", 8, 2)]
    bench.submit("c", [1, 2], max_tokens=9, tenant="c")
    assert [name for name, _, _ in shape(bench.step())] == ["a", "b", "c"]
    assert shape(bench.step())[-1][0] == "long"


def test_a_tenant_that_fills_the_batch_pauses_for_a_newcomer_though_never_twice_in_a_row() -> None:
    bench = Bench(batch_tokens=8, sequences=8)
    for name in ("f1", "f2", "f3"):
        bench.submit(name, [1, 2], max_tokens=9, tenant="flood")
    bench.step()
    bench.submit("a", [1, 2, 3], max_tokens=9, tenant="a")
    before = bench.engine.scheduler.counters.counter("flood")
    assert shape(bench.step()) == [("a", 0, 3)]
    assert bench.engine.scheduler.counters.counter("flood") == before  # a pause is not paid for
    bench.submit("b", [1, 2], max_tokens=9, tenant="b")
    assert shape(bench.step()) == [("f1", 2, 1), ("f2", 2, 1), ("f3", 2, 1), ("a", 3, 1), ("b", 0, 2)]


@pytest.mark.parametrize("there", ["ab", "aab"])
def test_nobody_who_decodes_pauses_where_no_tenant_has_most(there: str) -> None:
    """Half of the seats is not most of them."""
    bench = Bench(batch_tokens=8)
    for place, tenant in enumerate(there):
        bench.submit(str(place), [1, 2], max_tokens=9, tenant=tenant)
    bench.step()
    bench.submit("c", [1, 2], max_tokens=9, tenant="c")
    *decoding, newcomer = shape(bench.step())
    assert sorted(decoding) == [(str(place), 2, 1) for place in range(len(there))] and newcomer == ("c", 0, 2)


def test_a_newcomer_without_a_seat_has_the_latest_of_the_tenant_with_most() -> None:
    bench = Bench(sequences=4)
    for name in ("a1", "f1", "f2", "f3"):
        bench.submit(name, [1], max_tokens=9, tenant=name[0])
    bench.step()
    bench.submit("b", [1], max_tokens=9, tenant="b")
    plan = bench.step()
    assert plan and [s.id for s in plan.preempted] == ["f3"] and [s.id for s in plan.admitted] == ["b"]


def test_a_newcomer_takes_nobodys_only_seat() -> None:
    bench = Bench(sequences=2)
    for name in ("a", "b"):
        bench.submit(name, [1], max_tokens=9, tenant=name)
    bench.step()
    bench.submit("c", [1], max_tokens=9, tenant="c")
    assert shape(bench.step()) == [("a", 1, 1), ("b", 1, 1)]


def test_a_newcomer_takes_no_seat_of_a_tenant_that_had_less() -> None:
    bench = Bench(sequences=2, counters=VirtualCounters(weights={"small": 100.0}))
    bench.submit("before", [1], max_tokens=40, tenant="large")
    bench.step()
    bench.submit("s1", [1], max_tokens=90, tenant="small")
    bench.run_until("before")
    bench.submit("s2", [1], max_tokens=90, tenant="small")
    bench.step()
    bench.submit("again", [1], max_tokens=9, tenant="large")
    assert [name for name, _, _ in shape(bench.step())] == ["s1", "s2"]


def test_where_there_were_several_tenants_prompts_come_in_short_pieces_beside_those_who_decode() -> None:
    bench = Bench(batch_tokens=8, sequences=2)
    bench.submit("one", [1], max_tokens=100, tenant="flood")
    bench.step()
    bench.submit("alone", range(8), max_tokens=1, tenant="flood")
    assert shape(bench.step()) == [("one", 1, 1), ("alone", 0, 7)]
    bench.step()
    bench.submit("other", [1], max_tokens=1, tenant="other")
    bench.step()
    bench.submit("in company", range(10, 18), max_tokens=1, tenant="flood")
    assert [count for _, _, count in shape(bench.step())] == [1, 8 // PROMPT_BUDGET_DIVISOR]
    for number in range(MULTI_TENANT_STEPS):
        if not bench.engine.scheduler.has_work:
            bench.submit(str(number), [1], max_tokens=100, tenant="flood")
        bench.step()
    bench.submit("alone again", range(20, 28), max_tokens=1, tenant="flood")
    assert [count for _, _, count in shape(bench.step())] == [1, 7]
