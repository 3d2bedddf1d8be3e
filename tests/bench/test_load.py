"""The load client: what it sends, what it counts, and that it refuses to time a wrong answer."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from bench.api import OpenAI
from bench.errors import BenchError
from bench.load import RequestShape, closed_loop, make_requests, open_loop
from tests.support.fake_openai import FakeServer, running

BASE = {"id": "base", "parent": None}
SHAPE = RequestShape(vocab=1000, prompt_tokens=12, output_tokens=7)


def test_requests_ask_for_exactly_the_shape() -> None:
    first, second = make_requests(["base", "a0"], SHAPE, seed=3)
    assert [first.model, second.model] == ["base", "a0"]
    assert len(first.prompt) == 12
    assert all(256 <= token < 1000 for token in first.prompt)
    assert first.prompt != second.prompt
    assert first.output_tokens == 7
    assert make_requests(["base"], SHAPE, seed=3)[0] == first != make_requests(["base"], SHAPE, seed=4)[0]


def test_prompts_have_no_token_that_the_vocabulary_lacks() -> None:
    """However small it is: its upper half, where no token is special."""
    (request,) = make_requests(["base"], RequestShape(vocab=4, prompt_tokens=200), seed=0)
    assert set(request.prompt) == {2, 3}


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_every_token_is_counted_however_they_are_chunked(chunk: int) -> None:
    fake = FakeServer([BASE], chunk=chunk)
    with running(fake) as url:
        run = asyncio.run(closed_loop(url, make_requests(["base"] * 6, SHAPE, seed=0), concurrency=3))
    assert len(fake.requests) == 6
    assert run.tokens == 42
    assert run.tokens_per_s == pytest.approx(42 / run.wall_s)
    for timing in run.timings:
        assert timing.tokens == 7
        assert len(timing.gaps_s) == 7 - chunk
        assert 0 < timing.ttft_s <= run.wall_s


@pytest.mark.parametrize("letter", ["\u2028", "\x85", "\x0b"])
def test_an_answer_may_have_what_ends_a_line_elsewhere(letter: str) -> None:
    with running(FakeServer([BASE], letter=letter)) as url:
        run = asyncio.run(closed_loop(url, make_requests(["base"], SHAPE, seed=0), concurrency=1))
    assert run.tokens == 7


def test_a_chunks_gap_is_spread_over_its_tokens() -> None:
    with running(FakeServer([BASE], chunk=3, gap_s=0.02)) as url:
        run = asyncio.run(closed_loop(url, make_requests(["base"], SHAPE, seed=0), concurrency=1))
    (timing,) = run.timings
    assert timing.gaps_s[0] == timing.gaps_s[1] == timing.gaps_s[2] and len(timing.gaps_s) == 4
    assert timing.ttft_s + sum(timing.gaps_s) <= run.wall_s


def test_a_closed_loop_has_so_many_clients_and_no_more() -> None:
    fake = FakeServer([BASE], gap_s=0.01)
    with running(fake) as url:
        asyncio.run(closed_loop(url, make_requests(["base"] * 9, SHAPE, seed=0), concurrency=3))
    assert 1 < fake.most_at_once <= 3


def test_an_answer_that_ends_with_an_error_has_no_speed() -> None:
    with running(FakeServer([BASE], broken=frozenset({"base"}))) as url, pytest.raises(BenchError, match="has failed"):
        asyncio.run(closed_loop(url, make_requests(["base"], SHAPE, seed=0), concurrency=1))


def test_an_answer_with_too_few_tokens_has_no_speed() -> None:
    fake = FakeServer([BASE], short=frozenset({"base"}))
    with running(fake) as url, pytest.raises(BenchError, match="6 tokens where 7"):
        asyncio.run(closed_loop(url, make_requests(["base"], SHAPE, seed=0), concurrency=1))


def test_a_refusal_is_told_with_its_reason() -> None:
    with running(FakeServer([BASE])) as url, pytest.raises(BenchError, match="404.*no model a9"):
        asyncio.run(closed_loop(url, make_requests(["a9"], SHAPE, seed=0), concurrency=1))


def test_requests_of_an_open_loop_are_sent_when_they_are_due() -> None:
    fake = FakeServer([BASE, {"id": "late", "parent": "base"}])
    with running(fake) as url:
        run = asyncio.run(open_loop(url, make_requests(["late", "base"], SHAPE, seed=0), [0.3, 0.0]))
    assert [request["model"] for request in fake.requests] == ["base", "late"]
    assert run.wall_s >= 0.3
    assert all(timing.ttft_s < run.wall_s for timing in run.timings)


def test_a_plain_server_may_end_early_and_its_usage_counts() -> None:
    fake = FakeServer([BASE], chunk=2, short=frozenset({"base"}))
    with running(fake) as url:
        run = asyncio.run(closed_loop(url, make_requests(["base"], SHAPE, seed=0), concurrency=1, api=OpenAI()))
    assert run.tokens == 6
    assert len(run.timings[0].gaps_s) == 2, "three chunks"
    assert "ignore_eos" not in fake.requests[0]


def test_tokens_that_no_event_brings_count_at_the_end() -> None:
    """llama.cpp holds a token back that ends within a character."""

    class Withheld(OpenAI):
        def tokens(self, event: Mapping[str, Any]) -> int:
            return 0

    with running(FakeServer([BASE])) as url:
        run = asyncio.run(
            closed_loop(url, make_requests(["base"], SHAPE, seed=0), concurrency=1, api=Withheld(exact=True))
        )
    assert run.tokens == 7 and not run.timings[0].gaps_s
