"""Where an adapter begins: at nothing, on every linear layer but the head, in float32, on a base left as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from tests.support.models import tiny_model
from tests.support.training import config
from training.base import disable_repacking
from training.errors import ConfigInvalid
from training.graft import graft

TEXT = torch.arange(97, 117).unsqueeze(0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    found: torch.Tensor = model(input_ids=TEXT).logits.float()
    return found


def grafted(name: str, dtype: torch.dtype = torch.float32, arch: str = "llama", **changes: Any) -> PeftModel:
    base: PreTrainedModel = tiny_model(arch)
    torch.nn.Module.to(base, dtype=dtype)
    base.requires_grad_(False)
    model = graft(base, config(Path("out"), name, **changes))
    assert isinstance(model, PeftModel)
    return model


@pytest.mark.parametrize("name", ["lora", "pissa", "dora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_begins_as_the_base_and_the_base_is_not_touched(name: str, dtype: torch.dtype) -> None:
    base: torch.nn.Module = tiny_model("llama")
    expected = logits(base.to(dtype))
    model = grafted(name, dtype)
    bound = 1e-4 if dtype == torch.float32 else 0.25
    torch.testing.assert_close(logits(model), expected, atol=bound, rtol=0.02)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}


def test_the_magnitudes_of_a_half_precision_base_are_exact() -> None:
    """Rounded, they would scale every output of the base by up to 0.4 % before the first step."""
    model = grafted("dora", torch.bfloat16)
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        weight = layer.get_base_layer().weight
        assert isinstance(weight, torch.Tensor)
        found = layer.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(found, weight.float().norm(dim=1), atol=0, rtol=1e-6)


def test_the_same_seed_gives_the_same_first_weights_and_another_gives_others() -> None:
    first, again, other = (grafted("lora", steps={"seed": seed}) for seed in (1, 1, 2))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_pissa_starts_from_the_best_fit_of_each_weight() -> None:
    """Its first half alone is the truncated singular value decomposition (arXiv 2404.02948, eq. 2 to 4)."""
    model = grafted("pissa")
    layer = model.get_submodule("base_model.model.model.layers.2.mlp.down_proj")
    assert isinstance(layer, LoraLayer)
    weight = layer.get_base_layer().weight
    assert isinstance(weight, torch.Tensor)
    a, b = (model.get_parameter(f"base_model.model.model.layers.2.mlp.down_proj.lora_{x}.default.weight") for x in "AB")
    left, values, right = torch.linalg.svd(weight)
    best = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
    fit = layer.scaling["default"] * b[:, :4] @ a[:4]
    assert (weight - fit).norm() < 1.001 * (weight - best).norm()
    assert torch.equal(a[:4], a[4:]) and torch.equal(b[:, :4], -b[:, 4:])


def test_the_second_half_of_pissa_gets_no_gradient() -> None:
    model = grafted("pissa")
    model(input_ids=TEXT).logits.square().mean().backward()
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            assert weight.grad is not None
            first, second = weight.grad.chunk(2, dim=0 if ".lora_A." in name else 1)
            assert first.any() and not second.any(), name


@pytest.mark.parametrize("arch", ["llama", "phi3", "gemma2"])
def test_all_linear_is_every_linear_of_the_layers_and_no_head(arch: str) -> None:
    model = grafted("lora", arch=arch)
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    plain = tiny_model(arch)
    linears = {path for path, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    assert adapted == {f"base_model.model.{path}" for path in linears - {"lm_head"}}


def test_chosen_layers_and_targets_are_the_only_ones() -> None:
    model = grafted("lora", adapter={"layers": [1, 3], "targets": ["q_proj", "mlp.down_proj"]})
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    stems = [f"base_model.model.model.layers.{layer}" for layer in (1, 3)]
    assert adapted == {f"{stem}.{linear}" for stem in stems for linear in ("self_attn.q_proj", "mlp.down_proj")}


def test_layers_that_the_base_has_not_are_told_with_those_it_has() -> None:
    with pytest.raises(ConfigInvalid) as caught:
        grafted("lora", adapter={"layers": [1, 4], "targets": ["q_proj", "query"]})
    assert "adapter.layers: the base has layers 0 to 3, not 4." in str(caught.value)
    assert "adapter.targets: the base has no query. It has down_proj, " in str(caught.value)


def test_pissa_of_a_rank_that_a_weight_has_not_is_told() -> None:
    with pytest.raises(ConfigInvalid, match="has no 40 principal directions"):
        grafted("pissa", adapter={"rank": 40})


def test_layers_in_4_bits_are_kept_from_repacking_themselves() -> None:
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 64, compute_dtype=torch.bfloat16)
    layer.support_avx512bf16_for_cpu = True
    disable_repacking(torch.nn.Sequential(torch.nn.Sequential(layer)))
    assert not layer.support_avx512bf16_for_cpu, "see loader/quantize.py for what a forward in eval mode does else"
