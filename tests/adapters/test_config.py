"""adapter_config.json: what is accepted, and how targets are matched against a base. Refusals: tests/hostile."""

import json
import math
from typing import Any

import pytest

from adapters.config import Settings, read_config
from adapters.manifest import Graft
from adapters.targets import derive
from loader.shape import BaseShape, LinearShape
from tests.support.adapters import llama_shape, peft_config

SHAPE = llama_shape()


def settings(**changes: Any) -> Settings:
    found, faults = read_config(json.dumps(peft_config(**changes)).encode())
    assert faults == () and found is not None
    return found


def faults(**changes: Any) -> str:
    _, found = read_config(json.dumps(peft_config(**changes)).encode())
    assert found, "expected a fault"
    return "\n".join(map(str, found))


def grafts(shape: BaseShape = SHAPE, **changes: Any) -> dict[str, Graft]:
    planned, complaints = derive(settings(**changes), shape)
    assert complaints == ()
    return {item.graft.path: item.graft for item in planned}


def target_faults(**changes: Any) -> str:
    return "\n".join(map(str, derive(settings(**changes), SHAPE)[1]))


ACCEPTED: list[dict[str, Any]] = [
    {"init_lora_weights": False},
    {"init_lora_weights": "gaussian"},
    {"lora_dropout": 0.05},
    {"lora_dropout": 0},
    {"task_type": None},
    {"revision": "main"},
    {"base_model_name_or_path": None},
    {"base_model_name_or_path": "C:\\models\\base"},
    {"auto_mapping": {"base_model_class": "LlamaModel", "parent_library": "transformers.models.llama.modeling_llama"}},
    {"modules_to_save": []},
    {"lora_alpha": 0.5},
    {"layers_pattern": ""},
]


@pytest.mark.parametrize("change", ACCEPTED)
def test_accepts(change: dict[str, Any]) -> None:
    assert settings(**change).rank == 4


def test_refuses_layers_with_a_string_of_targets() -> None:
    assert "layers_to_transform" in faults(target_modules="all-linear", layers_to_transform=[0])


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules", "peft_type"])
def test_refuses_missing(field: str) -> None:
    config = peft_config()
    del config[field]
    _, found = read_config(json.dumps(config).encode())
    assert [fault.where for fault in found] == [f"adapter_config.json: {field}"]


def test_lists_all_faults() -> None:
    assert faults(r=0, bias="all", use_qalora=True, surprise=1).count("adapter_config.json: ") == 4


class TestTargets:
    def test_names_match_at_dots(self) -> None:
        assert set(grafts(target_modules=["q_proj"])) == {f"model.layers.{n}.self_attn.q_proj" for n in range(2)}
        assert "'proj'" in target_faults(target_modules=["proj"])

    def test_longer_names_and_full_paths(self) -> None:
        assert len(grafts(target_modules=["self_attn.q_proj"])) == 2
        assert list(grafts(target_modules=["model.layers.1.mlp.up_proj"])) == ["model.layers.1.mlp.up_proj"]

    def test_all_linear_leaves_the_head_out(self) -> None:
        assert set(grafts(target_modules="ALL-linear")) == set(SHAPE.linears) - {"lm_head"}

    def test_exclude(self) -> None:
        found = grafts(target_modules="all-linear", exclude_modules=["mlp.up_proj", "model.layers.0.self_attn.q_proj"])
        assert len(found) == 14 - 2 - 1

    def test_layers(self) -> None:
        assert list(grafts(target_modules=["q_proj"], layers_to_transform=1)) == ["model.layers.1.self_attn.q_proj"]
        assert len(grafts(target_modules=["q_proj"], layers_to_transform=[0, 1], layers_pattern="layers")) == 2
        assert len(grafts(target_modules=["q_proj"], layers_to_transform=[])) == 2

    def test_a_full_path_ignores_layers(self) -> None:
        found = grafts(target_modules=["model.layers.0.mlp.up_proj", "q_proj"], layers_to_transform=[1])
        assert set(found) == {"model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"}

    def test_layers_are_counted_by_the_first_number(self) -> None:
        paths = [f"model.layers.{n}.experts.{e}.up" for n in range(2) for e in range(3)]
        shape = BaseShape("moe", 2, {path: LinearShape(path, 8, 8) for path in paths}, {})
        assert set(grafts(shape, target_modules=["up"], layers_to_transform=[1])) == set(paths[3:])
        found = grafts(shape, target_modules=["up"], layers_to_transform=[1], layers_pattern=["experts"])
        assert set(found) == {paths[1], paths[4]}

    def test_unknown_names(self) -> None:
        message = target_faults(target_modules=["q_proj", "query_key_value"])
        assert "no linear layer called 'query_key_value'" in message and "q_proj" in message

    def test_refused_modules_say_why(self) -> None:
        assert "it is an embedding" in target_faults(target_modules=["q_proj", "embed_tokens"])
        assert "it is fused" in target_faults(target_modules=["q_proj", "experts.gate_up_proj"])

    def test_layers_beyond_the_base(self) -> None:
        message = target_faults(layers_to_transform=[1, 7], base_model_name_or_path="org/deep")
        assert "layers 0 to 1" in message and "'7'" in message and "'org/deep'" in message

    def test_nothing_left(self) -> None:
        assert "is left to adapt" in target_faults(target_modules=["q_proj"], exclude_modules=["q_proj"])


class TestRanks:
    def test_patterns(self) -> None:
        found = grafts(
            rank_pattern={"v_proj": 8, "model.layers.1.self_attn.q_proj": 2, "^q_proj": 16},
            alpha_pattern={"^model.layers.0.self_attn.q_proj": 4},
        )
        assert [found[f"model.layers.{n}.self_attn.v_proj"].rank for n in range(2)] == [8, 8]
        assert [found[f"model.layers.{n}.self_attn.q_proj"].rank for n in range(2)] == [4, 2]
        assert [found[f"model.layers.{n}.self_attn.q_proj"].scaling for n in range(2)] == [1.0, 4.0]

    def test_the_first_key_in_the_file_wins(self) -> None:
        short_first = grafts(rank_pattern={"q_proj": 2, "model.layers.0.self_attn.q_proj": 3})
        long_first = grafts(rank_pattern={"model.layers.0.self_attn.q_proj": 3, "q_proj": 2})
        assert short_first["model.layers.0.self_attn.q_proj"].rank == 2
        assert long_first["model.layers.0.self_attn.q_proj"].rank == 3

    def test_rslora_scaling(self) -> None:
        found = grafts(use_rslora=True, rank_pattern={"v_proj": 3})
        assert found["model.layers.0.self_attn.q_proj"].scaling == 8 / 2
        assert found["model.layers.0.self_attn.v_proj"].scaling == 8 / math.sqrt(3)
