"""The heaviest bodies are at the bounds and not over them, and whoever holds the loop up is named."""

import pytest

from server.body import MAX_BRACKETS, MAX_KEYS, MAX_VALUES, check_counts
from server.ports import Limits
from tests.fuzz.loop import LIMIT_MS, Heard, bodies, verdict

BODIES = bodies()


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
