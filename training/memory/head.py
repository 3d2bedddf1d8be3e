"""What the loss needs beyond the decoder: logits over the vocabulary, whole or in tiles.

Owns those sums. The trainers project tokens in tiles of 4096 by 32768 and never hold all logits (trl's
kernels/chunked_logprob.py); transformers' own loss does, and is here for comparison.
"""

from dataclasses import dataclass

from loader.anatomy import Anatomy
from training.memory.regime import FP32, Regime

TILE_TOKENS, TILE_WORDS = 4096, 32768
TORCH_TILE = 28
"""Bytes a logit of a tile that is folded by torch operations, for want of Triton: seven in fp32 at once."""


@dataclass(frozen=True, slots=True)
class Head:
    """Bytes at the end of the forward pass, and in the loss's backward pass."""

    forward: int
    backward: int


def tiled(anatomy: Anatomy, regime: Regime, tokens: int) -> Head:
    """The loss as it is computed here. The whole gradient of the head, where it learns, is summed in fp32."""
    rows, words = min(tokens, TILE_TOKENS), min(anatomy.vocab, TILE_WORDS)
    tile = rows * TILE_WORDS * regime.product
    gradients = tokens * anatomy.hidden * (FP32 + regime.product)
    if regime.full:
        gradients += anatomy.vocab * anatomy.hidden * FP32
    weight = words * anatomy.hidden * regime.product if regime.base != regime.product else 0
    if regime.cuda:
        return Head(tile + weight, tile + weight + gradients)
    raised = FP32 * (rows + anatomy.hidden) * words if regime.product != FP32 else 0
    folding = max(TORCH_TILE * rows * words, raised)
    return Head(tile + weight + folding // 2, tile + weight + gradients + folding)


def whole(anatomy: Anatomy, regime: Regime, tokens: int) -> Head:
    """transformers' own loss: logits, then in fp32 logits, log-probabilities and two gradients; three at once."""
    logits = tokens * anatomy.vocab
    return Head(logits * (regime.product + 2 * FP32), logits * (regime.product + 3 * FP32))


def absent(anatomy: Anatomy, regime: Regime, tokens: int) -> Head:
    """A reward model scores each sequence by one number."""
    return Head(0, 0)
