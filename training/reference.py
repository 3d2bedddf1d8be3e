"""The trainer's side of the parity gate: log-probabilities of whole rows under the model that was trained.

Owns that forward pass: one row at a time, unpadded and without a cache, so that nothing but the model decides.
"""

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import nn

from training.evaluating import evaluating
from training.parity import Reference, Rows


def reference(model: PeftModel, rows: Rows, *, autocast: bool = False) -> Reference:
    """Both sides of `model`: with its adapter, and with the adapter switched off. Leaves its mode as it was.

    `autocast` is training.base.Loaded's: products in bf16, as in training.
    """
    with torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16, enabled=autocast):
        trained = logprobs(model, rows)
        with model.disable_adapter():
            base = logprobs(model, rows)
    return Reference(rows, trained, base, "bfloat16" if autocast else "float32")


def logprobs(model: nn.Module, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """For each row, the log-probability of its tokens 1.. given the ones before, float32, in nats."""
    with evaluating(model):
        return [_row(model, row) for row in rows]


@torch.inference_mode()
def _row(model: nn.Module, row: Sequence[int]) -> list[float]:
    device = next(model.parameters()).device
    ids = torch.tensor([list(row)], device=device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1]
    chosen = logits.float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    values: list[float] = chosen.tolist()
    return values
