"""The trainer's side of the parity gate: log-probabilities of token rows under the trained model.

Owns that forward pass: one row at a time, without padding or a cache, so that nothing but the model affects it.
"""

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import nn

from training.eval_mode import eval_mode
from training.parity import ReferenceLogprobs, Rows


def reference_logprobs(model: PeftModel, rows: Rows, *, autocast: bool = False) -> ReferenceLogprobs:
    """The log-probabilities of `rows` with the adapter of `model`, and with the adapter disabled.

    `autocast` is training.base.LoadedBase's: matrix products in bf16, as in training.
    """
    with torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16, enabled=autocast):
        trained = logprobs(model, rows)
        with model.disable_adapter():
            base = logprobs(model, rows)
    return ReferenceLogprobs(rows, trained, base, "bfloat16" if autocast else "float32")


def logprobs(model: nn.Module, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """For each row, the log-probability of its tokens 1.. given the ones before, float32, in nats."""
    with eval_mode(model):
        return [_row(model, row) for row in rows]


@torch.inference_mode()
def _row(model: nn.Module, row: Sequence[int]) -> list[float]:
    device = next(model.parameters()).device
    ids = torch.tensor([list(row)], device=device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1]
    chosen = logits.float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    values: list[float] = chosen.tolist()
    return values
