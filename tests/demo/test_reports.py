"""The task of README's train section: balanced, and held out in sentences and places, not in whole lines only."""

import json
import tomllib
from collections import Counter
from typing import Any

import pytest

from demo.make_data import HELD_OUT_REPORTS, HERE, REPORTS

POOLS: dict[str, Any] = tomllib.loads((HERE / "pool" / "reports.toml").read_text(encoding="utf-8"))
DEPARTMENTS = ("roads", "lights", "water", "waste", "parks")


def pairs(split: str) -> list[tuple[str, str]]:
    lines = (HERE / "data" / f"reports.{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["prompt"], row["completion"]) for row in map(json.loads, lines)]


@pytest.mark.parametrize(("split", "count"), [("train", REPORTS), ("heldout", HELD_OUT_REPORTS)])
def test_every_route_is_drawn_about_equally_often(split: str, count: int) -> None:
    found = Counter(route for _, route in pairs(split))
    assert set(found) == {f" {department}" for department in DEPARTMENTS}
    assert sum(found.values()) == count == len({prompt for prompt, _ in pairs(split)})
    assert max(found.values()) - min(found.values()) <= 6


def test_held_out_pools_share_nothing_with_the_ones_of_training() -> None:
    train, held_out = POOLS["train"], POOLS["held_out"]
    assert not set(train["places"]) & set(held_out["places"])
    for department in DEPARTMENTS:
        assert not set(train["reports"][department]) & set(held_out["reports"][department])


def test_every_held_out_sentence_is_asked_once() -> None:
    prompts = [prompt for prompt, _ in pairs("heldout")]
    for department in DEPARTMENTS:
        for sentence in POOLS["held_out"]["reports"][department]:
            before, _, after = sentence.partition("{place}")
            assert sum(before in prompt and after in prompt for prompt in prompts) == 1, sentence
