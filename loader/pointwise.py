"""Normalisation by compiled kernels, where they give what a model's own modules give.

Owns that replacement. Knows no architecture: whether a module may be replaced is asked of the module.
"""

import torch
from torch import Tensor, nn

from native.kernels import Kernels

PROBED_ROWS = 3


class HouseNorm(nn.Module):
    """RMS normalisation, `w * x / sqrt(mean(x^2) + epsilon)`; it holds the very weight of the module it replaces."""

    def __init__(self, weight: Tensor, epsilon: float, kernels: Kernels) -> None:
        super().__init__()
        self.weight = weight
        self._epsilon = epsilon
        self._kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        return self._kernels.rms_norm(x, self.weight, self._epsilon)


def speed_up_norms(model: nn.Module, kernels: Kernels | None) -> None:
    """Replace every module of `model` that normalises as the kernel does.

    Which ones do is found out by trying: some architectures add 1 to their weights or round elsewhere.
    """
    if kernels is None:
        return
    for path, module in list(model.named_modules()):
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if isinstance(weight, nn.Parameter) and isinstance(epsilon, float) and kernels.takes(weight):
            house = HouseNorm(weight, epsilon, kernels)
            if _agree(module, house, weight):
                model.set_submodule(path, house)


@torch.no_grad()
def _agree(theirs: nn.Module, ours: nn.Module, weight: Tensor) -> bool:
    """Whether two modules give nearly the same for rows of very different size; sums may differ in their last bit."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(PROBED_ROWS, weight.shape[0], generator=random) * torch.tensor([[1e-3], [1.0], [1e2]])
    x = x.to(weight.dtype)
    return torch.allclose(theirs(x).float(), ours(x).float(), rtol=2**-7, atol=1e-6)
