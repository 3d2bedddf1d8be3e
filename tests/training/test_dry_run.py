"""What is told before a run: figures that add up, steps as they will be, and an example with what counts marked."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support.training_data import chat, config, tokenizer, write
from training.config import TrainConfig
from training.data.prepare import prepare
from training.dry_run import DryRun, Lengths, describe, packed_rows, steps_per_epoch

ROWS = [chat("a" * length, "b") for length in range(1, 21)]
PAIR = {"prompt": "q", "chosen": "yes", "rejected": "no"}


def told(tmp_path: Path, rows: list[Any], objective: str = "sft", **data: Any) -> DryRun:
    made = tokenizer("chatml")
    chosen = config(write(tmp_path / "train.jsonl", rows), objective=objective, **data)
    return describe(prepare(chosen, made), chosen, made)


def test_the_figures(tmp_path: Path) -> None:
    run = told(tmp_path, ROWS, max_tokens=40)
    least = len("<user\n" + "a" + ">\n" + "<assistant\n" + "b" + ">")
    assert run.train.lengths == Lengths(least, least + 9, least + 18, 40)
    assert (run.train.examples, run.train.truncated, run.heldout.examples) == (20, 1, 0)
    assert run.train.tokens == sum(range(least, least + 20)) - 1
    assert run.train.counted == 39, "the answer and the end of turn, which the longest has lost"
    assert (run.steps_per_epoch, run.steps) == (2, 2)
    assert json.loads(json.dumps(run.as_json()))["train"]["lengths"]["p95"] == least + 18


def test_plain_text_has_brackets(tmp_path: Path) -> None:
    text = str(told(tmp_path, ROWS))
    assert "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧" in text
    assert "The last token of the example is '<|im_end|>', the end of turn." in text
    assert "0 cut at 1024 tokens" in text and "nothing is measured" in text


def test_a_terminal_has_colours(tmp_path: Path) -> None:
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, color_system="standard", width=100).print(told(tmp_path, ROWS))
    assert "\x1b[1;32mb<|im_end|>\x1b[0m" in screen.getvalue()
    assert "⟦" not in screen.getvalue()


def test_a_pair_shows_both_answers(tmp_path: Path) -> None:
    run = told(tmp_path, [PAIR], "dpo")
    assert "the chosen\nq⟦yes<|im_end|>⟧\nthe rejected\nq⟦no<|im_end|>⟧" in str(run)
    assert (run.train.tokens, run.train.counted) == (9, 7)


def test_a_prompt_to_complete_counts_nothing(tmp_path: Path) -> None:
    run = told(tmp_path, [{"prompt": "q"}] * 9, "grpo")
    assert run.train.counted == 0
    assert (run.steps_per_epoch, run.rows_per_epoch) == (2, 9), "16 answers a step are those to 4 prompts"
    assert "the end of turn" not in str(run)


def test_an_example_that_was_cut_has_no_end(tmp_path: Path) -> None:
    assert "'a', no end of turn" in str(told(tmp_path, [{"text": "a" * 60}], max_tokens=50))


@pytest.mark.parametrize(("changes", "steps"), [({"epochs": 2.5}, 5), ({"max_steps": 3}, 3)])
def test_steps(tmp_path: Path, changes: dict[str, Any], steps: int) -> None:
    made, plain = tokenizer("chatml"), config(write(tmp_path / "train.jsonl", ROWS))
    chosen = TrainConfig.model_validate({**plain.model_dump(exclude_unset=True), "steps": changes})
    assert steps_per_epoch(20, chosen) == 2
    assert describe(prepare(chosen, made), chosen, made).steps == steps


def test_packing_fills_rows(tmp_path: Path) -> None:
    assert packed_rows([], 10) == 0
    assert packed_rows([6, 5, 5, 4], 10) == 2
    assert packed_rows([10, 1], 10) == 2
    run = told(tmp_path, ROWS, packing=True)
    assert run.rows_per_epoch == 1 and "(1 packed rows)" in str(run)
