"""The loss on tokens that count, against the plain mean over rows one by one; and the general text."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tests.support.models import tiny_model, tiny_tokenizer
from training.general_text import LONGEST, TEXT, general_loss, pieces
from training.loss import mean_loss


@dataclass(frozen=True)
class Row:
    ids: tuple[int, ...]
    counted: tuple[bool, ...]


ROWS = (
    Row((3, 4, 5, 6, 7), (False, False, False, True, True)),
    Row((9, 8, 7), (True, True, True)),
    Row((1, 2), (False, False)),
    Row(tuple(range(10, 50)), (False, *[True, False] * 19, True)),
    Row((5, 5, 5, 5, 5, 5), (False, True, False, False, False, True)),
    Row((77,), (True,)),
)


@torch.inference_mode()
def one_by_one(model: PreTrainedModel, rows: Sequence[Row]) -> float:
    losses = []
    for row in rows:
        ids = torch.tensor([row.ids])
        logits = model(input_ids=ids, use_cache=False).logits[0]
        losses += [
            float(cross_entropy(logits[index - 1], ids[0, index]))
            for index in range(1, len(row.ids))
            if row.counted[index]
        ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
@pytest.mark.parametrize("batch_tokens", [1, 60, 512])
def test_batched_loss_is_the_mean_over_counted_tokens(arch: str, batch_tokens: int) -> None:
    model = tiny_model(arch)
    found = mean_loss(model, ROWS, batch_tokens=batch_tokens)
    assert found == pytest.approx(one_by_one(model, ROWS), abs=2e-5)


def test_it_is_measured_without_dropout_in_batches_that_are_bounded() -> None:
    model, seen = tiny_model("llama").train(), list[tuple[bool, int]]()
    model.register_forward_pre_hook(
        lambda module, _, given: seen.append((module.training, given["input_ids"].numel())), with_kwargs=True
    )
    mean_loss(model, ROWS, batch_tokens=60)
    assert len(seen) > 1 and all(not training and tokens <= 60 for training, tokens in seen)
    assert model.training, "as it was before"


def test_nothing_that_counts_has_no_loss() -> None:
    assert mean_loss(tiny_model("llama"), [ROWS[2], ROWS[5]]) is None


def test_the_general_text_is_read_whole_and_each_piece_alone() -> None:
    tokenizer = tiny_tokenizer()
    found = pieces(tokenizer)
    assert len(found) >= 8
    text = TEXT.read_text(encoding="utf-8")
    assert "%" not in "".join(str(tokenizer.decode(list(piece.ids))) for piece in found)
    assert len(text) > 2000
    assert all(not piece.counted[0] and all(piece.counted[1:]) and len(piece.ids) <= LONGEST for piece in found)


def test_the_general_loss_tells_a_damaged_model_from_its_base() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    before = general_loss(model, tokenizer)
    assert general_loss(model, tokenizer) == before, "the same twice"
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "mlp" in name:
                weight.mul_(3)
    assert general_loss(model, tokenizer) > before + 0.01
