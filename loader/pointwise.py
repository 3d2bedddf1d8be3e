"""Normalisation and gated MLPs by compiled kernels, and normalisation by torch's own on a GPU, where they give what a
model's own modules give.

Owns that replacement. Knows no architecture: whether a module may be replaced is found out by trying both.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from native.kernels import Kernels
from native.tables import DTYPE

PROBED_ROWS = 3
GATED = {"gate_proj", "up_proj", "down_proj"}


class CompiledNorm(nn.Module):
    """RMS normalisation, `w * x / sqrt(mean(x^2) + epsilon)`; it holds the very weight of the module it replaces."""

    def __init__(self, weight: Tensor, epsilon: float, kernels: Kernels) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon
        self._kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        return self._kernels.rms_norm(x, self.weight, self.epsilon)


class TorchNorm(nn.Module):
    """The same by torch's own function, which is one launch on a GPU where transformers' definition is six."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class CompiledMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))` (SwiGLU, arXiv 2002.05202) with the very linears of the module it replaces."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, original: nn.Module, kernels: Kernels) -> None:
        super().__init__()
        for name in sorted(GATED):
            self.add_module(name, original.get_submodule(name))
        self._kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.down_proj(self._kernels.silu_product_(self.gate_proj(x), self.up_proj(x)))
        return product


def speed_up_pointwise(model: nn.Module, kernels: Kernels | None) -> None:
    """Replace every module of `model` that normalises, or is gated, as the kernels do; without them, on a GPU, those
    that normalise as torch does.

    Which ones do is found out by trying: some architectures add 1 to a norm's weights, round elsewhere, or have
    another activation.
    """
    if kernels is None and all(weight.is_cpu for weight in model.parameters()):
        return
    for path, module in list(model.named_modules()):
        replacement, width = _replacement(module, kernels)
        if replacement is not None and _agree(module, replacement, width):
            model.set_submodule(path, replacement)


def _replacement(module: nn.Module, kernels: Kernels | None) -> tuple[nn.Module | None, int]:
    """What could replace `module`, and how many inputs it takes."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if isinstance(weight, nn.Parameter) and isinstance(epsilon, float):
        if kernels is None:
            return TorchNorm(weight, epsilon), weight.shape[0]
        if kernels.takes(weight):
            return CompiledNorm(weight, epsilon, kernels), weight.shape[0]
    if kernels is not None and {name for name, _ in module.named_children()} == GATED | {"act_fn"}:
        return CompiledMLP(module, kernels), cast(int, module.get_submodule("gate_proj").in_features)
    return None, 0


@torch.inference_mode()
def _agree(original: nn.Module, replacement: nn.Module, width: int) -> bool:
    """Whether two modules give nearly the same for rows of very different size; sums may differ in their last bit."""
    x = torch.randn(PROBED_ROWS, width, generator=torch.Generator().manual_seed(0))
    weight = next(original.parameters())
    x = (x * torch.tensor([[1e-3], [1.0], [1e2]])).to(weight.device, DTYPE if weight.is_cpu else weight.dtype)
    want, got = original(x).float(), replacement(x).float()
    size = want.abs().amax(-1, keepdim=True) + 1e-6
    return bool(((want - got).abs() <= 2**-6 * size).all())
