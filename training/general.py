"""What a run has forgotten: the loss on a fixed general text, which ships with the code.

Owns the text, general.txt, and how it is cut into rows. The text was written for this purpose, is on varied subjects
and never changes, so figures of different runs on one base compare; bases with different tokenizers do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from training.loss import mean_loss

TEXT = Path(__file__).with_name("general.txt")
BREAK = "\n%\n"
"""Stands between the pieces of the file, which have nothing to do with each other."""
LONGEST = 512
"""Tokens of a piece that are read; no piece is near it with a usual vocabulary."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of the text as tokens; all of them count but the first."""

    ids: tuple[int, ...]

    @property
    def counted(self) -> Sequence[bool]:
        return (False, *[True] * (len(self.ids) - 1))


def general_loss(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> float:
    """Nats per token on the general text. Its rise from base to trained model is what was forgotten."""
    loss = mean_loss(model, pieces(tokenizer))
    assert loss is not None, "the general text has tokens"
    return loss


def pieces(tokenizer: PreTrainedTokenizerFast) -> list[Piece]:
    """The text's pieces, each with the tokenizer's own beginning."""
    texts = TEXT.read_text(encoding="utf-8").strip().split(BREAK)
    return [Piece(tuple(tokenizer.encode(text)[:LONGEST])) for text in texts]
