"""`bench step` on a tiny base: every kind of step is measured, and said in words."""

from pathlib import Path

import pytest

from bench import step
from bench.decode_steps import StepSetup, measure
from bench.errors import BenchError
from bench.overhead import bare_step_s
from bench.step import _lines
from tests.support.models import tiny_model_dir


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_every_kind_of_step_is_measured(quantization: str | None, tmp_path: Path) -> None:
    model, setup = tiny_model_dir("llama", tmp_path), StepSetup(rows=3, context=8, adapters=2, rank=4)
    found = measure(str(model), "bfloat16", quantization, tmp_path, setup, steps=4, rounds=2, kernels=False)
    assert set(found) == {"base", "served", "mixed", "merged", "adapters", "prompt", "adapted"} | (
        {"torch"} if quantization is None else set()
    )
    assert all(milliseconds > 0 for milliseconds in found.values())


def test_it_is_told_in_words() -> None:
    found = {"base": 20.0, "served": 16.0, "torch": 40.0, "mixed": 25.0, "merged": 20.0, "adapters": 4.0}
    found |= {"prompt": 30.0, "adapted": 40.0}
    said = "\n".join(_lines(found, StepSetup(8, 128, 8, 16), "bfloat16"))
    assert "20.0 ms, 1.25 times its bare products (16.0 ms)" in said
    assert "0.80 of the base's speed; 5.0 ms more, 1.25 times reading them (4.0 ms)" in said
    assert "a prompt of 128 tokens: 30.0 ms, with an adapter 40.0 ms, 0.75 of the base's speed" in said


def test_a_base_alone_says_nothing_of_adapters() -> None:
    said = "\n".join(_lines({"base": 2.0, "served": 1.0, "prompt": 9.0}, StepSetup(8, 128, 0, 16), "nf4"))
    assert "adapter" not in said and "a prompt of 128 tokens: 9.0 ms" in said


def test_whoever_wants_the_bare_step_can_read_what_it_prints(tmp_path: Path) -> None:
    assert 0 < bare_step_s(str(tiny_model_dir("llama", tmp_path)), rows=2, context=8, steps=3) < 60


def test_a_base_that_cannot_be_had_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is no directory"):
        step.main(base=str(tmp_path / "nowhere"), data_dir=tmp_path)
