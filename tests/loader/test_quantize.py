"""4-bit layers: what they stand for, packed for AVX512-BF16 or not, and that our product is bitsandbytes' own."""

import copy
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn

from loader import quantize
from loader.base import load
from loader.source import resolve
from tests.support.kernels import kernels
from tests.support.models import tiny_model_dir


def layer(out_features: int, in_features: int, kind: str = "nf4", dtype: torch.dtype = torch.bfloat16) -> Linear4bit:
    torch.manual_seed(out_features)
    made = Linear4bit(in_features, out_features, bias=True, compute_dtype=dtype, quant_type=kind)
    made.weight.data = torch.randn(out_features, in_features, dtype=dtype)
    made.bias = nn.Parameter(torch.randn(out_features, dtype=dtype), requires_grad=False)
    return made.to("cpu").eval()


def parameter(module: nn.Module) -> Params4bit:
    weight = module.weight
    assert isinstance(weight, Params4bit)
    return weight


def packed_by_settling(module: Linear4bit) -> bool:
    """Whether the layer would be packed on a CPU that has the kernel."""
    module.support_avx512bf16_for_cpu = True
    model = nn.Sequential(module)
    quantize.settle(model)
    settled = parameter(model.get_submodule("0"))
    x = torch.randn(4, module.in_features, dtype=module.compute_dtype)
    assert model(x).shape == (4, module.out_features)
    return bool(getattr(settled.quant_state, "packing_format_for_cpu", False))


@pytest.mark.parametrize("kind", quantize.TYPES)
@pytest.mark.parametrize(("out_features", "in_features"), [(32, 64), (96, 256)])
def test_a_packed_weight_is_read_back(kind: str, out_features: int, in_features: int) -> None:
    weight = parameter(layer(out_features, in_features, kind))
    want = dequantize_4bit(weight.data, weight.quant_state)
    packed, state = _convert_weight_packed_for_cpu(weight.data, copy.deepcopy(weight.quant_state))
    got = quantize.unpacked(packed, state)
    assert got.shape == (out_features, in_features) and got.dtype == want.dtype
    # The packed kernel rounds each block's scale to bf16; nothing else may differ.
    torch.testing.assert_close(got, want, rtol=2**-7, atol=0)
    assert torch.equal(quantize.unpacked(packed, state), got)


@pytest.mark.parametrize(("out_features", "in_features"), [(33, 64), (32, 96), (1, 64), (40, 40)])
def test_odd_shapes_are_never_packed(out_features: int, in_features: int) -> None:
    assert not packed_by_settling(layer(out_features, in_features))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_precisions_are_never_rounded_to_bf16(dtype: torch.dtype) -> None:
    assert not packed_by_settling(layer(32, 64, dtype=dtype))


@pytest.mark.parametrize("rows", [1, 8])
def test_our_product_is_that_of_the_dense_weight(rows: int) -> None:
    theirs = layer(96, 64)
    ours = nn.Sequential(theirs)
    quantize.settle(ours, kernels())
    assert isinstance(ours[0], quantize.FourBitLinear)
    x = torch.randn(rows, 64).to(torch.bfloat16)
    want = nn.functional.linear(x.float(), quantize.dense(ours[0].weight).float(), theirs.bias.float())
    with torch.inference_mode():
        # Ours does not round what the codes stand for to bf16 before it multiplies.
        torch.testing.assert_close(ours(x).float(), want, rtol=2**-6, atol=2**-4)


@pytest.mark.parametrize("kind", quantize.TYPES)
def test_a_quantized_base_keeps_its_head_dense_and_its_logits_near(kind: str, tmp_path: Path) -> None:
    source = resolve(str(tiny_model_dir("qwen3", tmp_path)), tmp_path)
    dense, small = load(source, device="cpu"), load(source, quantization=kind, device="cpu")
    assert small.shape == dense.shape
    assert small.resident_bytes() < 0.6 * dense.resident_bytes()
    path = "model.layers.0.mlp.down_proj"
    error = (small.weight(path) - dense.weight(path)).float().norm() / dense.weight(path).float().norm()
    assert 0.02 < error < 0.2
    assert torch.equal(small.weight("lm_head"), dense.weight("lm_head"))
    before = small.weight(path)
    with torch.inference_mode():
        assert bool(small.model(torch.arange(20)[None]).logits.isfinite().all())
    assert torch.equal(small.weight(path), before)
