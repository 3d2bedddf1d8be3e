"""Adapters written by PEFT itself are read without a fault, and PEFT reads what the store keeps, to the same output."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.checkpoint import read_directory
from adapters.errors import InvalidAdapter
from adapters.store import BlobStore
from loader.discover import shape_of
from loader.shape import BaseShape

# PEFT 0.21 asks for a name that transformers 5 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

PROMPT = torch.arange(1, 9).unsqueeze(0)


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        vocab_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


@pytest.fixture(scope="module")
def shape() -> BaseShape:
    return shape_of(base(), "tiny-llama")


def written(path: Path, **config: Any) -> torch.Tensor:
    """Have PEFT write an adapter with random weights to `path`; its logits."""
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **config}
    model = get_peft_model(base(), LoraConfig(**options)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(str(path))
    return logits(model)


def logits(model: Callable[..., Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(PROMPT).logits
    return found


CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"task_type": "CAUSAL_LM"},
    "no task": {},
    "defaults": {"target_modules": None},
    "rslora": {"use_rslora": True, "lora_alpha": 5},
    "dora": {"use_dora": True},
    "rsdora": {"use_dora": True, "use_rslora": True, "r": 3},
    "all linear": {"target_modules": "all-linear", "lora_dropout": 0.1},
    "gaussian": {"init_lora_weights": "gaussian"},
    "not initialised": {"init_lora_weights": False},
    "layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "one layer": {"layers_to_transform": 0},
    "exclude": {"target_modules": "all-linear", "exclude_modules": ["up_proj", "model.layers.0.self_attn.q_proj"]},
    "rank pattern": {"rank_pattern": {"v_proj": 7, "^model.layers.1.self_attn.q_proj": 2}},
    "alpha pattern": {"alpha_pattern": {"layers.0.self_attn.q_proj": 3}, "use_rslora": True},
    "both patterns, dora": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 16}, "use_dora": True},
    "paths": {"target_modules": ["model.layers.0.mlp.down_proj", "self_attn.o_proj"]},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_reads_what_peft_writes_and_peft_reads_what_we_store(tmp_path: Path, shape: BaseShape, case: str) -> None:
    expected = written(tmp_path / "peft", **CONFIGS[case])
    checkpoint = read_directory(tmp_path / "peft", shape)
    assert set(checkpoint.tensors) == set(load_file(tmp_path / "peft" / "adapter_model.safetensors"))
    store = BlobStore(tmp_path / "blobs")
    stored = store.path(store.put(checkpoint))
    plain = base()
    assert not torch.equal(logits(plain), expected)
    assert torch.equal(logits(PeftModel.from_pretrained(plain, stored).eval()), expected)


@pytest.mark.parametrize("case", [case for case in CONFIGS if "dora" not in case])
def test_grafts_compute_what_peft_computes(tmp_path: Path, shape: BaseShape, case: str) -> None:
    """The manifest's paths, ranks and scalings, folded into the base's weights, give PEFT's own logits."""
    expected = written(tmp_path, **CONFIGS[case])
    manifest = read_directory(tmp_path, shape).manifest
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    model = base()
    with torch.no_grad():
        for graft in manifest.grafts:
            stem = f"base_model.model.{graft.path}"
            delta = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
            assert math.isfinite(graft.scaling)
            model.get_parameter(f"{graft.path}.weight").add_(graft.scaling * delta)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:.*tie_word_embeddings")
def test_a_head_that_peft_saved_beside_its_adapter_is_refused_with_the_fix(tmp_path: Path, shape: BaseShape) -> None:
    written(tmp_path, target_modules=["lm_head"])
    with pytest.raises(InvalidAdapter, match="save_embedding_layers=False"):
        read_directory(tmp_path, shape)


def test_an_adapter_of_the_head_is_read(tmp_path: Path, shape: BaseShape) -> None:
    model = get_peft_model(base(), LoraConfig(r=4, target_modules=["lm_head", "q_proj"]))
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    assert read_directory(tmp_path, shape).manifest.targets == ("lm_head", "q_proj")


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed", "ignore:Adapter .default.. 4 LoRA tensor")
@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_modules": ".*q_proj"}, "target_modules"),
    ],
)
def test_what_peft_can_and_we_cannot_is_refused_by_name(
    tmp_path: Path, shape: BaseShape, config: dict[str, Any], word: str
) -> None:
    written(tmp_path, **config)
    with pytest.raises(InvalidAdapter, match=f"adapter_config.json: {word}"):
        read_directory(tmp_path, shape)
