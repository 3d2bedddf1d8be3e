"""What a training step computes: floating-point operations of its matrix products, by token.

Owns those counts. Attention's own products, which grow with the length, are left out, and so are sums and norms: at
usual lengths they are a few percent.

A product with a weight of N numbers takes 2 N a token, forward; backward another 2 N for the gradient of its input,
and 2 N for that of the weight, if the weight learns.
"""

from dataclasses import dataclass

from loader.anatomy import Anatomy, Layer
from loader.shape import LinearShape
from training.config import TrainConfig

PASS = 2
"""Operations a token and weight in one pass: a multiplication and an addition."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Operations a token of one micro-batch: of this run, and of a full fine-tune in its place."""

    flops: int
    full: int

    @property
    def share(self) -> float:
        return self.flops / self.full


def compute(config: TrainConfig, anatomy: Anatomy, learning: int) -> Compute:
    """Of a run of sft, dpo (whose reference model takes another forward pass) or reward; `learning` counts the
    adapter's numbers."""
    layers, head = multiplied(anatomy)
    head = 0 if config.objective == "reward" else head
    checkpointing = config.steps.checkpointing
    reference = PASS * (layers + head) if config.objective == "dpo" else 0
    full = step(layers, learns=True, recomputed=checkpointing) + step(head, learns=True) + reference
    if checkpointing:
        full -= PASS * _last(anatomy)
    if config.method == "full":
        return Compute(full, full)
    frozen = step(layers, learns=False, recomputed=checkpointing) + step(head, learns=False) + reference
    return Compute(frozen + step(learning, learns=True, recomputed=checkpointing), full)


def step(weights: int, *, learns: bool, recomputed: bool = False) -> int:
    """Forward and backward: 6 N where the weights learn, 4 N where only what lies below them does; 2 N more where the
    forward pass is repeated (checkpointing)."""
    return PASS * weights * (2 + learns + recomputed)


def dpo(weights: int) -> int:
    """A token of either sequence of a pair, full fine-tuning: a step and the reference's forward pass, 8 N."""
    return step(weights, learns=True) + PASS * weights


def ppo(weights: int, epochs: int) -> int:
    """A token of an answer, full fine-tuning, all four models of one size: (8 + 12 epochs) N.

    Policy, reference, reward and value model run once, the policy to write; each epoch trains policy and value model.
    """
    return 4 * PASS * weights + epochs * 2 * step(weights, learns=True)


def multiplied(anatomy: Anatomy) -> tuple[int, int]:
    """Weights that each token is multiplied with, in the layers and in the head; of the experts, those it visits."""
    layers = sum(sum(map(_products, layer.linears)) + _experts(layer) for layer in anatomy.stack)
    return layers, _products(anatomy.head)


def _last(anatomy: Anatomy) -> int:
    """Weights of each dense layer's last product: what comes of it is in no gradient, so torch does not repeat it.

    With an adapter beside it, it is repeated, since the adapter is computed after it.
    """
    return sum(_products(layer.linears[-1]) for layer in anatomy.stack if layer.experts is None)


def _products(linear: LinearShape) -> int:
    return linear.in_features * linear.out_features


def _experts(layer: Layer) -> int:
    if layer.experts is None:
        return 0
    return layer.expert_parameters * layer.experts.active // layer.experts.count
