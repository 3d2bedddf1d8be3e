"""The tiled product against the same sum in float32, and the wrapper that changes nothing but speed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loader.product import TILE, FastLinear, lacks_instructions, linear, speed_up_linears
from tests.support.kernels import kernels

HALVES = [torch.bfloat16, torch.float16]
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 17])
@pytest.mark.parametrize(("out_features", "in_features"), [(8, 16), (TILE, 24), (TILE + 1, 8), (3 * TILE - 5, 33)])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_the_sum_in_float32_rounded_once(
    dtype: torch.dtype, rows: int, out_features: int, in_features: int, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, in_features, generator=generator).to(dtype)
    weight = torch.randn(out_features, in_features, generator=generator).to(dtype)
    bias = torch.randn(out_features, generator=generator).to(dtype) if biased else None
    want = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    got = linear(x, weight, bias)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, rtol=2 * ROUNDING[dtype], atol=2 * ROUNDING[dtype])


def test_keeps_leading_dimensions_and_takes_strided_input() -> None:
    x = torch.randn(2, 12, 3).to(torch.bfloat16).transpose(1, 2)
    weight = torch.randn(5, 12).to(torch.bfloat16)
    assert linear(x, weight).shape == (2, 3, 5)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=0.02, atol=0.05)


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.empty(0, 8, dtype=torch.bfloat16), torch.ones(4, 8, dtype=torch.bfloat16)).shape == (0, 4)


def test_float32_is_left_to_torch() -> None:
    x, weight = torch.randn(9, 16), torch.randn(4, 16)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_gradients_still_flow() -> None:
    x = torch.randn(6, 8).to(torch.bfloat16).requires_grad_()
    linear(x, torch.ones(4, 8, dtype=torch.bfloat16)).sum().backward()
    assert x.grad is not None and bool((x.grad == 4).all())


@pytest.mark.parametrize("compiled", [False, True])
def test_wrapping_keeps_paths_parameters_and_tying(compiled: bool) -> None:
    model = nn.Module()
    model.embed = nn.Embedding(16, 8, dtype=torch.bfloat16)
    model.block = nn.Sequential(nn.Linear(8, 8, dtype=torch.bfloat16), nn.Linear(8, 8))
    model.head = nn.Linear(8, 16, bias=False, dtype=torch.bfloat16)
    model.head.weight = model.embed.weight
    paths, names = [path for path, _ in model.named_modules()], list(model.state_dict())
    speed_up_linears(model, kernels() if compiled else None)
    assert [path for path, _ in model.named_modules()] == paths
    assert list(model.state_dict()) == names
    assert model.head.weight is model.embed.weight
    assert isinstance(model.get_submodule("block.0"), FastLinear) == (compiled or lacks_instructions(torch.bfloat16))
    assert type(model.get_submodule("block.1")) is nn.Linear
