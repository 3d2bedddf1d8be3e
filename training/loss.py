"""The loss of a model on tokenized text, in nats per counted token: for held-out data and for general text alike.

Owns that one mean. Every counted token weighs the same, whatever row or batch it is in, so figures of two runs compare.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch.nn.functional import cross_entropy

from training.eval_mode import eval_mode
from training.padding import pad

BATCH_TOKENS = 512
"""Padded tokens of a batch. The head's logits are the largest tensor: 100 MB at 49 thousand words of vocabulary."""
IGNORED = -100
"""The label of a token that does not count, as torch and the trainers have it."""


class CountedTokens(Protocol):
    """Token ids, and which of them count in the loss."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def counted(self) -> Sequence[bool]: ...


def labels(example: CountedTokens) -> list[int]:
    """What each position is trained to be: the token's id, or IGNORED where the token does not count."""
    return [id if counts else IGNORED for id, counts in zip(example.ids, example.counted, strict=True)]


@torch.inference_mode()
def mean_loss(
    model: torch.nn.Module, examples: Sequence[CountedTokens], *, batch_tokens: int = BATCH_TOKENS
) -> float | None:
    """The mean over all counted tokens, in nats, computed in float32; None where no token counts."""
    total, tokens = 0.0, 0
    with eval_mode(model):
        for batch in _batches(examples, batch_tokens):
            summed, counted = _summed_loss(model, batch)
            total += summed
            tokens += counted
    return total / tokens if tokens else None


def _batches(examples: Sequence[CountedTokens], batch_tokens: int) -> Iterator[list[CountedTokens]]:
    """Batches of similar lengths. A row's first token is predicted from nothing, so it never counts."""
    usable = sorted((each for each in examples if any(each.counted[1:])), key=lambda each: len(each.ids))
    borders = [0]
    for index, example in enumerate(usable):
        if index > borders[-1] and len(example.ids) * (index + 1 - borders[-1]) > batch_tokens:
            borders.append(index)
    for start, stop in pairwise([*borders, len(usable)]):
        if start < stop:
            yield usable[start:stop]


def _summed_loss(model: torch.nn.Module, batch: Sequence[CountedTokens]) -> tuple[float, int]:
    """The summed loss of a batch in nats, and the number of its counted tokens.

    The head computes logits only from the first position on that predicts a counted token.
    """
    device = next(model.parameters()).device
    first = min(list(each.counted).index(True, 1) for each in batch)
    ids, mask = pad([each.ids for each in batch], 0, device)
    targets = [labels(each) for each in batch]
    labels_BT = pad(targets, IGNORED, device)[0][:, first:]
    keep = torch.arange(first - 1, ids.shape[1] - 1, device=device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
    loss = cross_entropy(logits.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum")
    return float(loss), int((labels_BT != IGNORED).sum())
