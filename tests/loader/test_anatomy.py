"""The anatomy counts what transformers builds, to the parameter, and refuses what it does not know."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from loader import configs
from loader.anatomy import anatomy_of, size_of
from loader.discover import linear_modules
from loader.errors import BaseNotFound, UnsupportedBase
from tests.support.models import ARCHITECTURES, CONFIGS

PRESETS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-70b": 70_553_706_496,
    "llama-3-8b": 8_030_261_248,
    "llama-65b": 65_285_660_672,
    "smollm2-135m-instruct": 134_515_008,
}


def on_meta(config: Any) -> PreTrainedModel:
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model: PreTrainedModel = make(config)
    return model


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_counts_what_transformers_builds(arch: str) -> None:
    config = CONFIGS[arch]()
    model, anatomy = on_meta(config), anatomy_of(config.to_dict())
    assert anatomy.parameters == sum(parameter.numel() for parameter in model.parameters())
    built = {
        path: (module.in_features, module.out_features, module.bias is not None)
        for path, module in linear_modules(model)
        if path != "lm_head"
    }
    predicted = {linear.path: (linear.in_features, linear.out_features, linear.bias) for linear in anatomy.linears}
    assert predicted == built


@pytest.mark.parametrize("changes", [{"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}, {"num_experts": 8}])
def test_layers_of_experts_may_be_few(changes: dict[str, Any]) -> None:
    config = CONFIGS["qwen2_moe"]()
    for key, value in changes.items():
        setattr(config, key, value)
    expected = sum(parameter.numel() for parameter in on_meta(config).parameters())
    assert anatomy_of(config.to_dict()).parameters == expected


def test_biases_are_counted_where_the_config_asks_for_them() -> None:
    config = CONFIGS["llama"]()
    config.attention_bias = config.mlp_bias = True
    expected = sum(parameter.numel() for parameter in on_meta(config).parameters())
    assert anatomy_of(config.to_dict()).parameters == expected


def test_what_an_old_config_leaves_out_is_as_transformers_fills_it_in() -> None:
    """The first Llamas' config.json names neither key-value heads nor a head size."""
    old = {key: value for key, value in configs.read("llama-65b").values.items() if key != "num_key_value_heads"}
    anatomy = anatomy_of(old)
    assert (anatomy.kv_heads, anatomy.head_dim, anatomy.tied) == (64, 128, False)
    assert anatomy.parameters == PRESETS["llama-65b"]


@pytest.mark.parametrize(("name", "parameters"), PRESETS.items())
def test_the_presets_are_the_published_shapes(name: str, parameters: int) -> None:
    anatomy = anatomy_of(configs.read(name).values)
    assert anatomy.parameters == parameters
    outside = anatomy.embeddings + anatomy.hidden + sum(layer.others for layer in anatomy.stack)
    assert sum(map(size_of, anatomy.linears)) == parameters - outside


def test_every_preset_is_checked_here() -> None:
    assert set(configs.preset_names()) == set(PRESETS)


def test_the_embedded_base_needs_no_conversion() -> None:
    assert configs.read("embedded").id == "smollm2-135m-instruct"


def test_an_unknown_family_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedBase, match="'deepseek_v3' are not known here"):
        anatomy_of({"model_type": "deepseek_v3"})


def test_a_missing_key_is_named() -> None:
    values = {key: value for key, value in configs.read("llama-2-7b").values.items() if key != "vocab_size"}
    with pytest.raises(UnsupportedBase, match="gives no vocab_size"):
        anatomy_of(values)


def test_a_directory_needs_its_config_alone(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(configs.read("llama-3-8b").values))
    found = configs.read(str(tmp_path))
    assert (found.id, anatomy_of(found.values).layers) == (tmp_path.name, 32)


@pytest.mark.parametrize("base", ["nobody/nothing", "missing.gguf", "llama-9-1b"])
def test_a_base_that_is_nowhere_is_told(base: str) -> None:
    with pytest.raises(BaseNotFound, match=r"llama-2-7b|converted to"):
        configs.read(base)
