"""The product of activations with a half-precision weight, fast on CPUs that cannot multiply half precision.

Owns `linear` and the wrapper that puts it under a model's linear layers: by compiled kernels where there are some, else
by raising tiles of the weight to float32. Knows nothing of models or adapters.

Shapes: x `[..., in]`, weight `[out, in]`, bias `[out]`, result `[..., out]`, all of one dtype.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from native.kernels import Kernels

# Measured on a CPU with AVX2 only: torch's own half-precision product costs the same per row whatever the number of
# rows, so from three rows on it is cheaper to raise the weight to float32 once, a tile at a time. 512 rows of a
# weight stay in the second-level cache and cost no memory worth counting, the head's 49152 rows included.
TILED_ROWS = 5
TILE = 512


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, kernels: Kernels | None = None) -> Tensor:
    """`x W^T + bias`, as `torch.nn.functional.linear`; sums are in float32 and rounded once, to x's dtype."""
    if not _slow_here(x, weight):
        return F.linear(x, weight, bias)
    if kernels is not None and kernels.takes(x, weight):
        return kernels.linear(x, weight, bias)
    return _tiled(x, weight, bias) if x.numel() >= TILED_ROWS * x.shape[-1] else F.linear(x, weight, bias)


def _tiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).float()
    out = x.new_empty(rows.shape[0], weight.shape[0])
    for start in range(0, weight.shape[0], TILE):
        tile = weight[start : start + TILE].float().t()
        part = rows @ tile if bias is None else torch.addmm(bias[start : start + TILE].float(), rows, tile)
        out[:, start : start + TILE] = part
    return out.view(*x.shape[:-1], weight.shape[0])


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The precision in which small products of `dtype` tensors are fastest on `device`."""
    return torch.float32 if device.type == "cpu" and lacks_instructions(dtype) else dtype


def dense_linear(weight: Tensor, bias: Tensor | None, kernels: Kernels | None = None) -> "nn.Linear | HouseLinear":
    """A frozen linear layer around an existing weight `[out, in]`, in the form this device multiplies fastest."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    return layer if product_dtype(weight.device, weight.dtype) == weight.dtype else HouseLinear(layer, kernels)


def _slow_here(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's own product is slow for these; gradients are torch's business all the same."""
    return (
        x.is_cpu
        and x.dtype == weight.dtype
        and lacks_instructions(weight.dtype)
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    )


@cache
def lacks_instructions(dtype: torch.dtype) -> bool:
    """Whether `dtype` is a half precision that this CPU has no multiplication for."""
    if dtype == torch.bfloat16:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported()


class HouseLinear(nn.Module):
    """A linear layer that computes with `linear`; it holds the very parameters of the layer it replaces."""

    def __init__(self, base: nn.Linear, kernels: Kernels | None = None) -> None:
        super().__init__()
        self.kernels = kernels
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight: Tensor = base.weight
        self.bias: Tensor | None = base.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.kernels)


def speed_up_linears(model: nn.Module, kernels: Kernels | None = None) -> None:
    """Replace the half-precision linear layers of `model` by HouseLinear where this CPU gains from it.

    Paths, parameters and their sharing (a tied head) stay as they are. Quantized layers are left alone.
    """
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and lacks_instructions(module.weight.dtype):
            model.set_submodule(path, HouseLinear(module, kernels))
