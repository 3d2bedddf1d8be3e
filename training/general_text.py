"""The loss on a fixed general text, general.txt: its rise through training measures what the model forgot.

Owns the text and how it is cut into rows. The text was written for this purpose, covers varied subjects and never
changes, so figures of runs on the same base compare. They do not across bases with different tokenizers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from training.loss import mean_loss

TEXT = Path(__file__).with_name("general.txt")
BREAK = "\n%\n"
"""Separates the file's pieces, which are unrelated to each other."""
LONGEST = 512
"""A piece is cut after so many tokens; with usual vocabularies none comes near."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of the text as tokens. The first has nothing to be predicted from and does not count."""

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
