"""The floating-point operations (FLOPs) of a training step's matrix products, for each token.

Owns those counts. Attention's own products, which grow with the length, are left out, and so are sums and norms: at
usual lengths they are a few percent.

A product with a weight of N numbers takes 2 N a token, forward; backward another 2 N for the gradient of its input,
and 2 N for that of the weight, if the weight learns.
"""

from dataclasses import dataclass

from loader.anatomy import Anatomy, Layer
from loader.shape import LinearShape
from training.config import TrainConfig

FLOPS_PER_PASS = 2
"""FLOPs for each token and weight in one pass: a multiplication and an addition."""


@dataclass(frozen=True, slots=True)
class Compute:
    """FLOPs per token: of this run, and of a full fine-tune of the same base."""

    flops: int
    full: int

    @property
    def share(self) -> float:
        """This run's FLOPs over the full fine-tune's."""
        return self.flops / self.full


def training_flops(config: TrainConfig, anatomy: Anatomy, learning: int) -> Compute:
    """The FLOPs of a run of sft, reward, or dpo, whose reference model takes another forward pass.

    `learning` is the number of the adapter's parameters.
    """
    layers, head = multiplied_weights(anatomy)
    head = 0 if config.objective == "reward" else head
    checkpointing = config.steps.checkpointing
    reference = FLOPS_PER_PASS * (layers + head) if config.objective == "dpo" else 0
    full = step_flops(layers, learns=True, recomputed=checkpointing) + step_flops(head, learns=True) + reference
    if checkpointing:
        full -= FLOPS_PER_PASS * _not_recomputed(anatomy)
    if config.method == "full":
        return Compute(full, full)
    frozen = step_flops(layers, learns=False, recomputed=checkpointing) + step_flops(head, learns=False) + reference
    return Compute(frozen + step_flops(learning, learns=True, recomputed=checkpointing), full)


def step_flops(weights: int, *, learns: bool, recomputed: bool = False) -> int:
    """Forward and backward pass through N weights: 6 N where they learn, 4 N where only layers below them do.

    2 N more where checkpointing repeats the forward pass.
    """
    return FLOPS_PER_PASS * weights * (2 + learns + recomputed)


def dpo_flops(weights: int) -> int:
    """Full fine-tuning with dpo, for each token of a pair's sequences: a step and the reference's forward pass, 8 N."""
    return step_flops(weights, learns=True) + FLOPS_PER_PASS * weights


def ppo_flops(weights: int, epochs: int) -> int:
    """Full fine-tuning with ppo, for a token of an answer, all four models of one size: (8 + 12 epochs) N.

    Policy, reference, reward and value model run once; then each epoch trains the policy and the value model. The docs
    compare dpo with it; no objective here uses it.
    """
    return 4 * FLOPS_PER_PASS * weights + epochs * 2 * step_flops(weights, learns=True)


def multiplied_weights(anatomy: Anatomy) -> tuple[int, int]:
    """The number of weights that a token is multiplied with, in layers and head; of experts, the active ones."""
    layers = sum(sum(map(_weights, layer.linears)) + _active_expert_weights(layer) for layer in anatomy.stack)
    return layers, _weights(anatomy.head)


def _not_recomputed(anatomy: Anatomy) -> int:
    """The number of weights of each dense layer's last product: no gradient needs its result, so it is not recomputed.

    With an adapter beside it, it is recomputed, since the adapter is computed after it.
    """
    return sum(_weights(layer.linears[-1]) for layer in anatomy.stack if layer.experts is None)


def _weights(linear: LinearShape) -> int:
    return linear.in_features * linear.out_features


def _active_expert_weights(layer: Layer) -> int:
    if layer.experts is None:
        return 0
    return layer.expert_parameters * layer.experts.active // layer.experts.count
