"""4-bit linear layers by bitsandbytes: how they are made, packed for the CPU, and turned back into dense weights.

Owns everything that knows bitsandbytes. Imported only when a base is quantized.

On CPUs with AVX512-BF16, bitsandbytes repacks a layer in place at its first eval forward, for a faster kernel.
`dequantize_4bit` cannot read the new layout. Here the packing happens at load, where it is wanted, and `dense`
reads both layouts.
"""

from typing import cast

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from loader.product import Change, FastLinear, as_arguments, lacks_instructions, linear
from native.kernels import Kernels
from native.tables import DTYPE as KERNELS_DTYPE
from native.tables import FourBitWeight

TYPES = ("nf4", "fp4")
PACK_OUT, PACK_IN = 32, 64
"""The packed kernel works on 32 output rows and on one quantization block, 64 inputs, at a time."""


def config_for(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's recipe (arXiv 2305.14314): 4-bit blocks of 64 with doubly quantized scales; heads stay dense."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", "score"],
    )


def settle(model: nn.Module, kernels: Kernels | None = None) -> None:
    """Give every 4-bit layer of `model` its final form for this CPU; on CUDA the layers stay bitsandbytes' own.

    Layers in bfloat16 are multiplied by our kernels where there are some. Otherwise those that bitsandbytes' packed
    kernel can take are packed now, so that what `dense` returns never changes later; and where that one is missing
    too, half-precision layers are dequantized for each product.
    """
    for path, module in list(model.named_modules()):
        if not isinstance(module, Linear4bit) or module.weight.device.type != "cpu":
            continue
        ours = kernels is not None and module.compute_dtype == KERNELS_DTYPE
        module.support_avx512bf16_for_cpu = not ours and bool(module.support_avx512bf16_for_cpu) and _packable(module)
        if module.support_avx512bf16_for_cpu:
            with torch.no_grad():
                module(torch.zeros(1, module.in_features, dtype=module.compute_dtype))
        elif ours or lacks_instructions(cast(torch.dtype, module.compute_dtype)):
            model.set_submodule(path, FourBitLinear(module, kernels))


def _packable(module: Linear4bit) -> bool:
    """The kernel computes in bf16 and crashes on odd shapes; other precisions were asked for on purpose."""
    even = module.out_features % PACK_OUT == 0 and module.in_features % PACK_IN == 0
    return even and module.compute_dtype == torch.bfloat16


def is_quantized(weight: Tensor) -> bool:
    return isinstance(weight, Params4bit)


def dense(weight: Tensor) -> Tensor:
    """The weight `[out, in]` that a 4-bit parameter stands for, packed or not, in its original dtype."""
    assert isinstance(weight, Params4bit)
    state = weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        return unpacked(weight.data, state)
    return dequantize_4bit(weight.data, state)


def unpacked(packed: Tensor, state: QuantState) -> Tensor:
    """The dense weight that the packed CPU kernel multiplies with.

    `packed [out, in/2]` holds, for each 32 output rows n and each pair of inputs k, the 64 codes (n, k) in that
    order, the first 32 as low and the last 32 as high halves of 32 bytes; `state.absmax [in/64, out]` one scale
    for 64 inputs.
    """
    out_features, in_features = state.shape
    pairs = packed.view(torch.uint8).reshape(-1, PACK_OUT)
    codes = torch.cat([pairs & 0xF, pairs >> 4], dim=1)
    codes = codes.reshape(out_features // PACK_OUT, in_features // 2, PACK_OUT, 2).transpose(1, 2)
    codes = codes.reshape(out_features, in_features)
    scales = state.absmax.float().t().repeat_interleave(state.blocksize, dim=1)
    values: Tensor = state.code.float()[codes.int()] * scales
    return values.to(state.original_dtype)


def state_tensors(weight: Tensor) -> list[Tensor]:
    """What bitsandbytes keeps beside the 4-bit codes: scales, their scales, and code books."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return []
    nested = getattr(state, "state2", None)
    tensors = [state.absmax, state.code, getattr(state, "offset", None)]
    tensors += [nested.absmax, nested.code] if nested is not None else []
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


class FourBitLinear(FastLinear):
    """A 4-bit linear layer for CPUs, instead of bitsandbytes' own.

    It multiplies by our kernels where there are some, else it dequantizes its weight for each product.
    """

    @property
    def stored(self) -> FourBitWeight:
        return _four_bits(self.weight)

    def forward(self, x: Tensor, change: Change | None = None) -> Tensor:
        if self.kernels is not None and self.kernels.takes(x) and not (torch.is_grad_enabled() and x.requires_grad):
            return self.kernels.linear(x, self.stored, self.bias, *as_arguments(change))
        return linear(x, dense(self.weight), self.bias, self.kernels, change)


def _four_bits(weight: Tensor) -> FourBitWeight:
    """An unpacked 4-bit parameter as the compiled kernels read it."""
    assert isinstance(weight, Params4bit)
    state = weight.quant_state
    nested = state.state2
    return FourBitWeight(
        weight.data, state.code, state.absmax, nested.code, nested.absmax, float(state.offset), tuple(state.shape)
    )
