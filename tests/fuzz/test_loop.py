"""The heaviest bodies are at the bounds and not over them, none holds the loop up, and whoever does is named."""

import time
from collections.abc import Iterator

import pytest

from server.body import MAX_BRACKETS, MAX_KEYS, MAX_VALUES, check_counts
from server.ports import Limits
from tests.fuzz.loop import LIMIT_MS, Body, Heard, bodies, measure, served, verdict
from tests.support.http import LiveServer

BODIES = bodies()
GENEROUS_MS = 250.0
"""Of the processor time of the loop's thread, for a machine that is slower, or shares its cores."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with served(tmp_path_factory.mktemp("loop")) as (server, _):
        yield server


@pytest.mark.parametrize("name", BODIES)
def test_e55_a_heavy_body_does_not_hold_the_loop_up(name: str, live: LiveServer) -> None:
    """The best of three tries; the first is most often enough."""
    tries = (measure(live, name, BODIES[name], time.thread_time) for _ in range(3))
    assert any(heard.pause_ms < GENEROUS_MS and heard.status in (200, 400) for heard in tries)


TURN = '{"role": "user", "content": "x"}'
BIASES = [f'"{id}":1' for id in range(300_000)]
REFUSED = {
    "deep": (Body("/v1/completions", '"prompt": ' + "[" * 100_000 + "]" * 100_000), 400),
    "a message of 20 MB": (Body("/v1/chat/completions", f'"messages": [{{"content": "{"x" * 20_000_000}"}}]'), 413),
    "turns": (Body("/v1/chat/completions", f'"messages": [{",".join([TURN] * 100_000)}]'), 400),
    "biases": (Body("/v1/completions", f'"logit_bias": {{{",".join(BIASES)}}}'), 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_e55_what_is_refused_does_not_hold_the_loop_up(name: str, live: LiveServer) -> None:
    """The best of three tries, for what the machine does besides."""
    body, status = REFUSED[name]
    tries = (measure(live, name, body, time.thread_time) for _ in range(3))
    assert any(heard.pause_ms < LIMIT_MS and heard.status == status for heard in tries)


@pytest.mark.parametrize("name", BODIES)
def test_a_body_passes_the_counts_and_is_near_a_bound(name: str) -> None:
    content = BODIES[name].content
    assert len(content) <= Limits(1).max_body_bytes
    check_counts(content.decode())


def test_each_bound_is_nearly_met() -> None:
    texts = [body.content.decode() for body in BODIES.values()]
    assert max(text.count(",") for text in texts) > 0.99 * MAX_VALUES
    assert max(text.count(":") for text in texts) > 0.99 * MAX_KEYS
    assert max(text.count("[") + text.count("{") for text in texts) > 0.99 * MAX_BRACKETS
    assert max(map(len, texts)) > 0.99 * Limits(1).max_body_bytes


def test_the_verdict_names_whoever_held_the_loop_up() -> None:
    fine = Heard("fine", 200, LIMIT_MS - 1)
    assert verdict([fine, Heard("refused", 400, 0.0)]) == []
    assert verdict([fine, Heard("slow", 200, 130.2)]) == ["slow: 130 ms"]
    assert verdict([Heard("at the limit", 400, LIMIT_MS)]) == ["at the limit: 100 ms"]
    assert verdict([Heard("fell over", 500, 1.0), Heard("never read", 413, 1.0)]) == [
        "fell over: status 500", "never read: status 413",
    ]  # fmt: skip
