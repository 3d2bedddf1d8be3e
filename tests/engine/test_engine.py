"""What a request goes through, from submission to its one end, whatever happens on the way."""

import time

import pytest

from adapters.errors import UnknownAdapter
from engine.errors import AdapterTooLarge, MergeRefused, PromptTooLong, QueueFull
from engine.events import AdapterEvicted, AdapterLoaded, Admitted, Finished, FirstToken, NextToken, Preempted, StepDone
from engine.sequence import FinishReason, Output, SamplingParams
from engine.tiers import PATIENCE
from tests.support.engine_fakes import EOS, Bench, expected_tokens, letters, named


def only(outputs: list[Output]) -> Output:
    assert len(outputs) == 1
    return outputs[0]


def test_tokens_and_text_come_one_by_one_and_the_reason_last() -> None:
    bench = Bench()
    request = bench.submit("r", [1, 2], max_tokens=3)
    bench.run()
    assert bench.tokens("r") == expected_tokens(request) == [3, 4, 5]
    assert bench.text("r") == letters([3, 4, 5])
    assert [output.finish_reason for output in bench.outputs["r"]] == [None, None, FinishReason.LENGTH]
    assert [output.admission is None for output in bench.outputs["r"]] == [False, True, True]


@pytest.mark.parametrize(
    ("params", "tokens", "stop_reason"),
    [
        (SamplingParams(max_tokens=9), [997, 998, EOS], None),
        (SamplingParams(max_tokens=9, stop_token_ids=(998,)), [997, 998], 998),
        (SamplingParams(max_tokens=9, stop_token_ids=(EOS,)), [997, 998, EOS], EOS),
    ],
)
def test_end_tokens_stop_and_show_no_text(params: SamplingParams, tokens: list[int], stop_reason: int | None) -> None:
    bench = Bench()
    bench.submit("r", [996], params=params)
    bench.run()
    assert bench.tokens("r") == tokens and bench.text("r") == letters(tokens[:-1])
    assert bench.reason("r") is FinishReason.STOP and bench.outputs["r"][-1].stop_reason == stop_reason


def test_ignore_eos_runs_to_the_end() -> None:
    bench = Bench()
    bench.submit("r", [997], params=SamplingParams(max_tokens=4, ignore_eos=True))
    bench.run()
    assert bench.tokens("r") == [998, 999, 0, 1] and bench.reason("r") is FinishReason.LENGTH


def test_before_min_tokens_nothing_stops() -> None:
    bench = Bench()
    bench.submit("r", [996], params=SamplingParams(max_tokens=6, min_tokens=4, stop=(letters([998]),)))
    bench.run()
    assert bench.tokens("r") == [997, 998, 999, 0, 1, 2]


def test_the_token_that_makes_up_min_tokens_may_stop() -> None:
    bench = Bench()
    bench.submit("r", [0], params=SamplingParams(max_tokens=6, min_tokens=3, stop=(letters([3]),)))
    bench.run()
    assert bench.tokens("r") == [1, 2, 3] and bench.reason("r") is FinishReason.STOP


def test_every_token_has_its_logprob_the_one_that_ends_too() -> None:
    bench = Bench()
    bench.submit("r", [996], params=SamplingParams(max_tokens=9, logprobs=0))
    bench.run()
    assert [report.token_id for output in bench.outputs["r"] for report in output.logprobs] == [997, 998, EOS]


def test_a_stop_string_ends_the_text_before_it() -> None:
    bench = Bench()
    bench.submit("r", [0], params=SamplingParams(max_tokens=20, stop=("fg", "zz")))
    bench.run()
    assert bench.text("r") == "bcde" and bench.outputs["r"][-1].stop_reason == "fg"
    assert bench.tokens("r") == [1, 2, 3, 4, 5, 6]


def test_text_held_for_a_stop_string_that_does_not_come_is_shown_at_the_end() -> None:
    bench = Bench()
    bench.submit("r", [0], params=SamplingParams(max_tokens=4, stop=("efg",)))
    bench.run()
    assert bench.text("r") == "bcde" and bench.reason("r") is FinishReason.LENGTH


def test_scoring_a_prompt_generates_nothing() -> None:
    bench = Bench(batch_tokens=3)
    bench.submit("r", range(8), params=SamplingParams(max_tokens=0, prompt_logprobs=1))
    bench.run()
    output = only(bench.outputs["r"])
    assert output.finish_reason is FinishReason.LENGTH and output.token_ids == () and output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [entry.token_id for entry in output.prompt_logprobs[1:] if entry] == list(range(1, 8))
    assert [entry.logprob for entry in output.prompt_logprobs[1:] if entry] == [-float(at) for at in range(7)]


def test_prompt_logprobs_survive_chunks_and_preemption() -> None:
    bench = Bench(blocks=5, batch_tokens=3)
    params = SamplingParams(max_tokens=8, prompt_logprobs=0)
    for name in ("first", "second"):
        bench.submit(name, range(9), params=params)
    bench.run()
    assert bench.of(Preempted)
    for name in ("first", "second"):
        reports = bench.outputs[name][0].prompt_logprobs
        assert reports is not None and [entry and entry.token_id for entry in reports] == [None, *range(1, 9)]
        assert bench.tokens(name) == list(range(9, 17))


def test_refusals_come_before_anything_is_queued() -> None:
    bench = Bench(waiting=1, adapters={"big": 101}, blocks=4)
    with pytest.raises(PromptTooLong, match="17 were requested"):
        bench.submit("r", range(10), max_tokens=7)
    with pytest.raises(AdapterTooLarge, match="101 bytes"):
        bench.submit("r", adapter="big")
    with pytest.raises(UnknownAdapter):
        bench.submit("r", adapter="nobody")
    bench.submit("waits")
    with pytest.raises(QueueFull):
        bench.submit("r")
    bench.run()
    assert bench.reason("waits") is FinishReason.LENGTH and len(bench.of(Finished)) == 1


def test_what_just_fits_is_taken() -> None:
    bench = Bench(model_len=16)
    bench.submit("r", range(10), max_tokens=6)
    bench.run()
    assert len(bench.tokens("r")) == 6
    with pytest.raises(PromptTooLong):
        bench.submit("s", range(10), max_tokens=7)


def test_an_empty_prompt_and_a_second_use_of_an_id_are_our_bugs() -> None:
    bench = Bench()
    with pytest.raises(AssertionError):
        bench.submit("r", [])
    bench.submit("r")
    with pytest.raises(AssertionError):
        bench.submit("r")


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_an_abort_frees_everything_whatever_the_state(steps: int) -> None:
    bench = Bench(batch_tokens=4, adapters={"a": 10})
    bench.submit("gone", range(6), adapter="a", max_tokens=5)
    bench.submit("stays", range(6), max_tokens=2)
    for _ in range(steps):
        bench.step()
    bench.engine.abort("gone")
    bench.engine.check_integrity()
    bench.run()
    assert bench.reason("stays") is FinishReason.LENGTH and bench.engine.pool.num_used == 0
    reasons = [event.reason for event in bench.of(Finished) if isinstance(event, Finished)]
    assert sorted(reasons) == ["abort", "length"]
    bench.engine.abort("gone")
    assert len(bench.of(Finished)) == 2


def test_an_abort_does_not_touch_what_the_last_step_handed_out() -> None:
    bench = Bench()
    bench.submit("r")
    handed_out = bench.engine.step()
    bench.engine.abort("r")
    assert len(handed_out) == 1


def test_f66_a_failed_step_fails_its_requests_and_nothing_else() -> None:
    bench = Bench(sequences=2)
    bench.runner.raises.add("bad")
    for name in ("bad", "beside", "behind"):
        bench.submit(name, max_tokens=6)
    bench.run()
    for name in ("bad", "beside"):
        assert only(bench.outputs[name]).error_code == "step_failed"
    assert bench.reason("behind") is FinishReason.LENGTH and bench.engine.pool.num_used == 0


@pytest.mark.parametrize(("adapter", "code"), [(None, "non_finite_logits"), ("a", "adapter_overflow")])
def test_a_row_that_is_not_finite_fails_alone(adapter: str | None, code: str) -> None:
    bench = Bench(adapters={"a": 10})
    bench.runner.overflows.add("bad")
    bench.submit("bad", adapter=adapter)
    request = bench.submit("good")
    bench.run()
    assert only(bench.outputs["bad"]).error_code == code and bench.reason("bad") is FinishReason.ERROR
    assert bench.tokens("good") == expected_tokens(request)


@pytest.mark.parametrize(("overflows", "cached"), [(True, 0), (False, 20)])
def test_nobody_finds_the_prefix_of_a_row_that_was_not_finite(overflows: bool, cached: int) -> None:
    """It may be what was not: its first chunks were full, and could be found, before the last one showed it."""
    bench = Bench(batch_tokens=16)
    if overflows:
        bench.runner.overflows.add("first")
    for id in ("first", "again"):
        bench.submit(id, range(22))
        bench.run()
    admission = bench.outputs["again"][0].admission
    assert admission is not None and admission.cached_tokens == cached
    assert bench.reason("again") is FinishReason.LENGTH


def test_an_adapter_that_cannot_be_read_fails_those_who_wait_for_it() -> None:
    bench = Bench(adapters={"bad": 10, "good": 10})
    bench.mover.corrupt.add(named("bad"))
    for name, adapter in (("1", "bad"), ("2", "bad"), ("3", "good")):
        bench.submit(name, adapter=adapter)
    bench.run()
    assert [only(bench.outputs[name]).error_code for name in "12"] == ["adapter_corrupt"] * 2
    assert "has changed on disk" in (bench.outputs["1"][-1].error or "")
    assert bench.reason("3") is FinishReason.LENGTH
    bench.mover.corrupt.clear()
    bench.submit("again", adapter="bad")
    bench.run()
    assert bench.reason("again") is FinishReason.LENGTH


def test_g71_a_device_that_is_out_of_memory_fails_the_adapter_not_the_engine() -> None:
    bench = Bench(adapters={"a": 10, "b": 10})
    bench.mover.unplaceable.add(named("a"))
    others = [bench.submit("base", max_tokens=6), bench.submit("b", [3], adapter="b", max_tokens=6)]
    bench.submit("r", adapter="a")
    bench.run()
    assert only(bench.outputs["r"]).error_code == "adapter_unavailable"
    assert bench.engine.tiers.residency.device_used == 10
    for each in others:
        assert bench.tokens(each.id) == expected_tokens(each)


def test_admission_tells_the_tier_that_was_found() -> None:
    bench = Bench(adapters={"a": 60, "b": 60}, device=100, host=200)
    tiers = []
    for number, adapter in enumerate(("a", "a", "b", "a", None)):
        bench.submit(str(number), adapter=adapter)
        bench.run()
        admission = bench.outputs[str(number)][0].admission
        assert admission is not None and admission.queue_s >= 0
        assert (admission.load_s > 0) == (admission.tier in ("disk", "host"))
        tiers.append(admission.tier)
    assert tiers == ["disk", "device", "disk", "host", "base"]


def test_observers_see_the_whole_life() -> None:
    bench = Bench(adapters={"a": 60, "b": 60}, device=100)
    bench.submit("r", adapter="a", max_tokens=3)
    bench.run()
    bench.submit("s", adapter="b", max_tokens=1)
    bench.run()
    kinds = [type(event) for event in bench.events]
    assert kinds[:8] == [
        AdapterLoaded, AdapterLoaded, Admitted, FirstToken, StepDone, NextToken, StepDone, NextToken,
    ]  # fmt: skip
    assert [event.tokens for event in bench.events if isinstance(event, StepDone)] == [3, 1, 1, 3]
    assert AdapterEvicted("a", "device") in bench.events  # type: ignore[arg-type]
    assert [event.generated_tokens for event in bench.events if isinstance(event, Finished)] == [3, 1]


def test_an_answers_parts_are_no_longer_than_the_whole() -> None:
    """Times to the first token and between tokens follow one another, and so do loading and waiting."""
    bench = Bench(adapters={"a": 60})
    bench.runner.delay_s, bench.mover.instant = 0.01, False
    began = time.monotonic()
    bench.submit("r", adapter="a", max_tokens=4)
    bench.step()
    time.sleep(0.05)
    bench.mover.arrive(named("a"))
    bench.run_until("r")
    lasted = time.monotonic() - began
    (finished,) = (event.seconds for event in bench.events if isinstance(event, Finished))
    first = [event.ttft_s for event in bench.events if isinstance(event, FirstToken)]
    gaps = [event.gap_s for event in bench.events if isinstance(event, NextToken)]
    assert len(first) == 1 and len(gaps) == 3 and sum(first + gaps) <= finished <= lasted
    admission = bench.outputs["r"][0].admission
    assert admission is not None and admission.load_s >= 0.05 and admission.queue_s + admission.load_s <= first[0]


def test_a_merge_finds_room_under_steady_traffic() -> None:
    """Room for one adapter, and requests for another without end: the newcomer is not kept out for ever."""
    bench = Bench(adapters={"a": 60, "b": 60}, device=100, waiting=1000)
    for turn in range(PATIENCE + 30):
        bench.submit(f"steady {turn}", adapter="b", max_tokens=5)
        bench.step()
        if turn == 8:
            bench.engine.merge(named("a"))
        if bench.engine.merged:
            break
    assert bench.engine.merged == named("a")
    assert turn > PATIENCE, "otherwise the device was never full"
    bench.engine.unmerge()
    bench.submit("afterwards", adapter="b")
    bench.run_until("afterwards")


def test_a_merge_waits_for_its_adapter_and_keeps_it() -> None:
    bench = Bench(adapters={"a": 60, "b": 60, "c": 10}, device=100)
    done = bench.engine.merge(named("a"))
    for _ in range(3):
        bench.step()
    assert done.done() and {bench.engine.merged, bench.runner.merged} == {"a"}
    assert bench.engine.merge(named("a")).result() is None
    with pytest.raises(MergeRefused):
        bench.engine.merge(named("c")).result()
    with pytest.raises(AdapterTooLarge):
        bench.submit("b", adapter="b")
    bench.submit("a", adapter="a")
    bench.submit("c", adapter="c")
    bench.run()
    admission = bench.outputs["a"][0].admission
    assert admission is not None and admission.tier == "merged"
    bench.engine.unmerge()
    assert bench.runner.merged is None
    bench.submit("b", adapter="b")
    bench.run()
    assert bench.reason("b") is FinishReason.LENGTH


def test_prefixes_are_not_shared_across_a_merge() -> None:
    bench = Bench(adapters={"a": 10})
    bench.submit("before", range(8), adapter="a")
    bench.run()
    bench.engine.merge(named("a"))
    bench.step()
    bench.submit("after", range(8), adapter="a")
    bench.run()
    bench.engine.unmerge()
    bench.submit("at last", range(8), adapter="a")
    bench.run()
    for id in ("after", "at last"):
        admission = bench.outputs[id][0].admission
        assert admission is not None and admission.cached_tokens == 0, id


def test_a_merge_that_fails_leaves_everything_as_it_was() -> None:
    bench = Bench(adapters={"a": 10, "bad": 10})
    bench.runner.refuses_merge = ValueError("no room")
    bench.mover.corrupt.add(named("bad"))
    for adapter, error in (("a", "no room"), ("bad", "changed on disk")):
        done = bench.engine.merge(named(adapter))
        for _ in range(3):
            bench.step()
        with pytest.raises(Exception, match=error):
            done.result(timeout=0)
    assert bench.engine.merged is None and bench.idle()


def test_unmerging_or_deleting_ends_a_merge_that_still_waits() -> None:
    bench = Bench(adapters={"a": 10})
    bench.mover.instant = False
    for end in (bench.engine.unmerge, lambda: bench.engine.forget(named("a"))):
        done = bench.engine.merge(named("a"))
        bench.step()
        end()
        assert isinstance(done.exception(timeout=0), MergeRefused)
    bench.mover.arrive(named("a"))
    bench.step()
    assert bench.engine.merged is None and bench.mover.host == set()
