"""The memory of the loss: logits over the vocabulary, whole or in tiles, and their gradients.

Owns those sums. The trainers project tokens in tiles of 4096 by 32768 and never hold all logits (trl's
kernels/chunked_logprob.py); transformers' own loss does, and is here for comparison.
"""

from dataclasses import dataclass

from loader.anatomy import Anatomy
from training.memory.regime import FP32, Regime

TILE_TOKENS, TILE_WORDS = 4096, 32768
TORCH_TILE = 28
"""Bytes for each logit of a tile where Triton is missing and torch operations reduce it: seven fp32 tensors at once."""


@dataclass(frozen=True, slots=True)
class LossMemory:
    """Bytes that the loss takes at the end of the forward pass, and in its own backward pass."""

    forward: int
    backward: int


def tiled(anatomy: Anatomy, regime: Regime, tokens: int) -> LossMemory:
    """The trainers' loss, in tiles. Where the head is trained, its whole gradient is summed in fp32."""
    rows, words = min(tokens, TILE_TOKENS), min(anatomy.vocab, TILE_WORDS)
    tile = rows * TILE_WORDS * regime.product
    gradients = tokens * anatomy.hidden * (FP32 + regime.product)
    if regime.full:
        gradients += anatomy.vocab * anatomy.hidden * FP32
    weight = words * anatomy.hidden * regime.product if regime.base != regime.product else 0
    if regime.cuda:
        return LossMemory(tile + weight, tile + weight + gradients)
    raised = FP32 * (rows + anatomy.hidden) * words if regime.product != FP32 else 0
    folding = max(TORCH_TILE * rows * words, raised)
    return LossMemory(tile + weight + folding // 2, tile + weight + gradients + folding)


def whole(anatomy: Anatomy, regime: Regime, tokens: int) -> LossMemory:
    """transformers' own loss: logits, then in fp32 logits, log-probabilities and two gradients; three at once."""
    logits = tokens * anatomy.vocab
    return LossMemory(logits * (regime.product + 2 * FP32), logits * (regime.product + 3 * FP32))


def absent(anatomy: Anatomy, regime: Regime, tokens: int) -> LossMemory:
    """A reward model has one number a sequence in place of logits: nothing worth counting."""
    return LossMemory(0, 0)
