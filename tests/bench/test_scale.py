"""The measuring tools for many, merged and cold adapters, against a server that answers at once."""

import os
from collections import Counter
from pathlib import Path

import orjson
import pytest

from bench import make_adapters, overhead, reuse, sampling, scale, scrape
from bench.load import RequestShape
from tests.support import tiny_base
from tests.support.fake_openai import FakeServer, running

SHAPE = RequestShape(vocab=1000, prompt_tokens=4, output_tokens=3)


def fake(adapters: int) -> FakeServer:
    own = ({"id": f"a{index}", "parent": "base"} for index in range(adapters))
    return FakeServer([{"id": "base", "parent": None}, *own])


def setup(url: str, count: int) -> scale.ScaleSetup:
    return scale.ScaleSetup(url, "base", SHAPE, count, concurrency=2, rounds=2)


def test_few_and_many_are_asked_for_in_turn() -> None:
    server, lines = fake(40), list[str]()
    with running(server) as url:
        found = scale.resident(setup(url, 40), lines.append)
    assert orjson.dumps(found), "it ends in a file"
    assert set(found["tokens_per_s"]) == {"zipf 5", "zipf 40", "uniform 5", "uniform 40"}
    assert all(ratio > 0 for ratio in found["many_of_few"].values())
    uniform_few = [request["model"] for request in server.requests[8:12]]
    assert set(uniform_few) <= {f"a{index}" for index in range(scale.FEW)}
    assert len(server.requests) == 3 * 4 * 4, "three rounds, the first to warm up"
    assert len({tuple(request["prompt"]) for request in server.requests}) == 3 * 4 * 4, "nothing is in a cache already"
    assert len(lines) == 3 and lines[0].endswith("to warm up")


def test_others_are_asked_for_while_base_requests_run() -> None:
    server, lines = fake(6), list[str]()
    with running(server) as url:
        found = scale.disturbed(setup(url, 6), lines.append)
    asked = Counter(request["model"] for request in server.requests)
    assert asked["base"] == 2 * 2 * 2
    assert len({tuple(request["prompt"]) for request in server.requests if request["model"] == "base"}) == 2 * 2 * 2
    assert asked["a0"] >= 2, "the warm one, in each round"
    assert found["cold_of_warm"] > 0
    assert len(lines) == 2 * 2


def test_each_adapter_is_asked_for_once_to_bring_it_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "PROGRESS_EVERY", 3)
    server, lines = fake(7), list[str]()
    with running(server) as url:
        scale.bring_in(setup(url, 7), lines.append)
    assert sorted(request["model"] for request in server.requests) == [f"a{index}" for index in range(7)]
    assert [line.split(": ")[1] for line in lines] == ["0 of 7", "3 of 7", "6 of 7"]


def test_a_cold_adapter_is_asked_for_twice_after_the_base(tmp_path: Path) -> None:
    adapters = make_adapters.write(tiny_base.write(tmp_path / "base"), tmp_path / "stored", count=3, rank=2)
    server = fake(3)
    with running(server) as url:
        found = scale.cold(setup(url, 3), adapters, tmp_path / "stored")
    asked = " ".join(request["model"] for request in server.requests)
    assert asked == "base a0 a0 base a1 a1 base a2 a2"
    assert found["bytes"] == (adapters[0] / "adapter_model.safetensors").stat().st_size
    assert found["read_s"] > 0


def test_a_merge_lasts_as_long_as_its_measurement() -> None:
    server = fake(1)
    with running(server) as url:
        found = reuse.merged(url, "base", SHAPE, rounds=1, concurrency=2)
    assert server.merges == ["POST", "DELETE"] * 2
    assert set(found) == {"base", "adapter", "merged", "merged_of_base"}
    assert Counter(request["model"] for request in server.requests) == {"base": 4, "a0": 8}


def test_the_same_prompt_is_sent_new_again_and_to_another_adapter() -> None:
    server = fake(2)
    server.metrics = {'rootstock_cached_tokens_total{adapter="x"}': 5.0}
    with running(server) as url:
        found = reuse.shared(url, 1000, rounds=1)
    assert [request["model"] for request in server.requests] == ["a0", "a0", "a1"]
    prompts = [request["prompt"] for request in server.requests]
    assert prompts[0] == prompts[1] == prompts[2]
    assert len(prompts[0]) == reuse.LONG_PROMPT
    assert found["cached_tokens_other_adapter"] == 0
    assert found["again_of_new"] == pytest.approx(found["ttft_s_again"] / found["ttft_s_new"])


def test_every_kind_is_measured_in_turn_with_requests_of_one_size() -> None:
    server = fake(0)
    with running(server) as url:
        found = sampling.rates(url, "base", SHAPE, rounds=2, concurrency=2)
    assert all(len(own) == 2 for own in found.values())
    sent = [server.requests[at : at + 4] for at in range(0, len(server.requests), 4)]
    assert len(sent) == 3 * len(sampling.KINDS)
    kinds = [*sampling.KINDS.items()]
    for requests, (kind, fields) in zip(sent, [*kinds, *kinds[::-1], *kinds], strict=True):
        for request in requests:
            assert request["temperature"] == fields.get("temperature", 0)
            assert fields.items() <= request.items() and request["max_tokens"] == SHAPE.output_tokens
            assert ("ignore_eos" in request) == (kind != "schema")
    assert len({tuple(request["prompt"]) for request in server.requests}) == len(server.requests)


def test_kinds_are_compared_with_the_greedy_answers_of_their_round() -> None:
    found = {"greedy": [100.0, 200.0, 50.0], "top-p": [90.0, 100.0, 30.0]}
    assert sampling.of_greedy(found) == {"greedy": 1.0, "top-p": 0.6}


def test_shares_of_time() -> None:
    used = {"server_s": 1.6, "event_loop_s": 0.16}
    rounds = [{"inside_s": inside_s, "steps": 100, "wall_s": 1.0, **used} for inside_s in (0.8, 0.9)]
    found = overhead.shares(rounds, bare_step_s=0.006)
    assert found["outside_of_steps"] == pytest.approx(0.15)
    assert found["beyond_bare_steps"] == pytest.approx(0.4)
    assert found["event_loop_of_server"] == pytest.approx(0.1)
    assert (found["step_ms"], found["bare_step_ms"]) == pytest.approx((8.5, 6.0))


def test_steps_are_read_around_each_round() -> None:
    server = fake(0)
    server.metrics = {overhead.SUM: 2.0, overhead.COUNT: 9.0}
    with running(server) as url:
        rounds = list(overhead.over_http(url, "base", SHAPE, concurrency=2, rounds=2, pid=os.getpid()))
    assert [(one["inside_s"], one["steps"]) for one in rounds] == [(0.0, 0.0)] * 2
    ticks = 0.03  # the system counts a thread's and a process's in hundredths of a second, and not at once
    assert all(0 <= one["event_loop_s"] <= one["server_s"] + ticks for one in rounds)
    assert len(server.requests) == 3 * 2


def test_samples_are_summed_by_name_and_label() -> None:
    server = fake(0)
    server.metrics = {'n{tier="device"}': 3.0, 'n{tier="host"}': 4.0, 'n_total{tier="device"}': 5.0, "m": 6.0}
    with running(server) as url:
        assert scrape.total(url, "n") == 7
        assert scrape.total(url, "n", 'tier="device"') == 3
        assert scrape.total(url, "nothing") == 0
