"""The loss of a model on tokenized text, in nats per token that counts: for held-out data and for general text alike.

Owns that one sum. Every token weighs the same, whatever row or batch it is in, so the figures of two runs compare.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch.nn.functional import cross_entropy

from training.evaluating import evaluating

BATCH_TOKENS = 512
"""Padded tokens of a batch. The head's logits are the largest tensor: 100 MB at 49 thousand words of vocabulary."""
IGNORED = -100
"""The label of a token that does not count, as torch and the trainers have it."""


class Counted(Protocol):
    """An example of training/data: its tokens, and which of them count."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def counted(self) -> Sequence[bool]: ...


@torch.inference_mode()
def mean_loss(model: torch.nn.Module, examples: Sequence[Counted], *, batch_tokens: int = BATCH_TOKENS) -> float | None:
    """Nats per counted token over all examples, float32; None where no token counts. Leaves the model's mode alone."""
    total, tokens = 0.0, 0
    with evaluating(model):
        for batch in _batches(examples, batch_tokens):
            summed, counted = _sum(model, batch)
            total += summed
            tokens += counted
    return total / tokens if tokens else None


def _batches(examples: Sequence[Counted], batch_tokens: int) -> Iterator[list[Counted]]:
    """Examples of like length together. The first token of a row has nothing before it and cannot count."""
    usable = sorted((one for one in examples if any(one.counted[1:])), key=lambda one: len(one.ids))
    borders = [0]
    for index, one in enumerate(usable):
        if index > borders[-1] and len(one.ids) * (index + 1 - borders[-1]) > batch_tokens:
            borders.append(index)
    for start, stop in pairwise([*borders, len(usable)]):
        if start < stop:
            yield usable[start:stop]


def _sum(model: torch.nn.Module, batch: Sequence[Counted]) -> tuple[float, int]:
    """The summed loss of a batch and its counted tokens. The head runs from the first position that predicts one."""
    device = next(model.parameters()).device
    width = max(len(one.ids) for one in batch)
    first = min(list(one.counted).index(True, 1) for one in batch)
    ids = torch.tensor([[*one.ids, *[0] * (width - len(one.ids))] for one in batch], device=device)
    mask = torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in batch], device=device)
    labels = torch.tensor(
        [
            [id if counts else IGNORED for id, counts in zip(one.ids, one.counted, strict=True)]
            + [IGNORED] * (width - len(one.ids))
            for one in batch
        ],
        device=device,
    )[:, first:]
    keep = torch.arange(first - 1, width - 1, device=device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
    loss = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return float(loss), int((labels != IGNORED).sum())
