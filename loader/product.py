"""The product of activations with a half-precision weight, fast on CPUs.

Owns `linear` and the wrapper that puts it under a model's linear layers: by compiled kernels where there are some, by
raising tiles of the weight to float32 where the CPU cannot multiply half precision, else by torch; and what is added to
a product before it is rounded. Knows nothing of models or adapters.

Shapes: x `[..., in]`, weight `[out, in]`, bias `[out]`, result `[..., out]`, all of one dtype. Suffixes: T rows of x,
O outputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from native.kernels import Kernels
from native.tables import FourBitWeight

# Measured on a CPU with AVX2 only: torch's own half-precision product costs the same per row whatever the number of
# rows, so from three rows on it is cheaper to raise the weight to float32 once, a tile at a time. 512 rows of a
# weight stay in the second-level cache and cost no memory worth counting, the head's 49152 rows included.
TILED_ROWS = 5
TILE = 512


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of the rows of a product `W x` before it is rounded: `y = g * (W x + d) + bias`.

    `plus_TO` is d, zero where a row gains nothing; `gains` are rows and their `g [out]`, or `[rows, out]`, other rows
    have none. Added to a product that is rounded already, a d below half a unit of its last place would be lost, and it
    is in every layer.
    """

    plus_TO: Tensor
    gains: tuple[tuple[slice, Tensor], ...] = ()

    def of(self, rows: slice) -> "Change":
        """The part for rows that a gain covers wholly or not at all."""
        inside = (
            (slice(own.start - rows.start, own.stop - rows.start), gain)
            for own, gain in self.gains
            if rows.start <= own.start and own.stop <= rows.stop
        )
        return Change(self.plus_TO[rows], tuple(inside))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    kernels: Kernels | None = None,
    change: Change | None = None,
) -> Tensor:
    """`x W^T + bias`, as `torch.nn.functional.linear`, or `change` of it; float32 sums rounded once, to x's dtype."""
    if kernels is not None and kernels.takes(x, weight) and not _differentiated(x, weight):
        return kernels.linear(x, weight, bias, *as_arguments(change))
    if not _slow_here(x, weight):
        return F.linear(x, weight, bias) if change is None else _changed_by_torch(x, weight, bias, change)
    few = x.numel() < TILED_ROWS * x.shape[-1]
    return F.linear(x, weight, bias) if few and change is None else _tiled(x, weight, bias, change)


def changed(layer: nn.Module, x: Tensor, change: Change) -> Tensor:
    """`change` of what `layer` makes of x: rounded once where we know how it multiplies, else on top of its result."""
    y: Tensor
    if isinstance(layer, FastLinear):
        y = layer(x, change)
        return y
    if type(layer) is nn.Linear:
        return _changed_by_torch(x, layer.weight, layer.bias, change)
    y, bias = layer(x), cast(Tensor | None, layer.bias)
    rows_TO = y.view(-1, y.shape[-1]).float()
    without = rows_TO if bias is None else rows_TO - bias.float()
    return _finished(without + change.plus_TO, change, bias).to(y.dtype).view(y.shape)


def _changed_by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, change: Change) -> Tensor:
    """torch's own product, which adds d to its sums; d itself may be rounded to x's dtype, and keeps its size."""
    rows_TO = torch.addmm(change.plus_TO.to(x.dtype), x.reshape(-1, x.shape[-1]), weight.t())
    if change.gains or bias is not None:
        rows_TO = _finished(rows_TO.float(), change, bias).to(x.dtype)
    return rows_TO.view(*x.shape[:-1], -1)


def _finished(sums_TO: Tensor, change: Change, bias: Tensor | None) -> Tensor:
    for rows, gain in change.gains:
        sums_TO[rows] *= gain
    return sums_TO if bias is None else sums_TO + bias


def _tiled(x: Tensor, weight: Tensor, bias: Tensor | None, change: Change | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).float()
    out = x.new_empty(rows.shape[0], weight.shape[0])
    for own in _tiles(weight.shape[0]):
        tile, short = weight[own].float().t(), None if bias is None else bias[own].float()
        if change is None:
            out[:, own] = rows @ tile if short is None else torch.addmm(short, rows, tile)
        else:
            part = Change(change.plus_TO[:, own], tuple((where, gain[..., own]) for where, gain in change.gains))
            out[:, own] = _finished(rows @ tile + part.plus_TO, part, short)
    return out.view(*x.shape[:-1], weight.shape[0])


def _tiles(outputs: int) -> Iterator[slice]:
    return (slice(start, start + TILE) for start in range(0, outputs, TILE))


def as_arguments(change: Change | None) -> tuple[Tensor | None, tuple[tuple[slice, Tensor], ...]]:
    """As the compiled kernels take it."""
    return (None, ()) if change is None else (change.plus_TO.float(), change.gains)


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The precision in which small products of `dtype` tensors are fastest on `device`."""
    return torch.float32 if device.type == "cpu" and lacks_instructions(dtype) else dtype


def dense_linear(weight: Tensor, bias: Tensor | None, kernels: Kernels | None = None) -> "nn.Linear | FastLinear":
    """A frozen linear layer around an existing weight `[out, in]`, in the form this device multiplies fastest."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    return FastLinear(layer, kernels) if _worthwhile(weight, kernels) else layer


def _slow_here(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's own product is slow for these; gradients are torch's business all the same."""
    same = x.is_cpu and x.dtype == weight.dtype
    return same and lacks_instructions(weight.dtype) and not _differentiated(x, weight)


def _differentiated(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _worthwhile(weight: Tensor, kernels: Kernels | None) -> bool:
    """Whether a linear layer with this weight gains from being a FastLinear."""
    compiled = kernels is not None and kernels.takes(weight)
    return weight.is_cpu and (compiled or lacks_instructions(weight.dtype))


@cache
def lacks_instructions(dtype: torch.dtype) -> bool:
    """Whether `dtype` is a half precision that this CPU has no multiplication for."""
    if dtype == torch.bfloat16:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported()


class FastLinear(nn.Module):
    """A linear layer that computes with `linear`; it holds the very parameters of the layer it replaces."""

    def __init__(self, base: nn.Linear, kernels: Kernels | None = None) -> None:
        super().__init__()
        self.kernels = kernels
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight: Tensor = base.weight
        self.bias: Tensor | None = base.bias

    @property
    def stored(self) -> Tensor | FourBitWeight:
        """The weight as the compiled kernels read it."""
        return self.weight

    def forward(self, x: Tensor, change: Change | None = None) -> Tensor:
        return linear(x, self.weight, self.bias, self.kernels, change)


def speed_up_linears(model: nn.Module, kernels: Kernels | None = None) -> None:
    """Replace the half-precision linear layers of `model` by FastLinear where this CPU gains from it.

    Paths, parameters and their sharing (a tied head) stay as they are. Quantized layers are left alone.
    """
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and _worthwhile(module.weight, kernels):
            model.set_submodule(path, FastLinear(module, kernels))
