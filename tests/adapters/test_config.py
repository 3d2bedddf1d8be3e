"""adapter_config.json: what is accepted, what is refused by name, and how targets are matched against a base."""

import json
import math
import time
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


def raw_fault(raw: bytes) -> str:
    found, complaints = read_config(raw)
    assert found is None and len(complaints) == 1
    return str(complaints[0])


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


REFUSED: list[tuple[str, Any]] = [
    *(("r", bad) for bad in (0, -4, 257, 2_000_000, "8", True, 8.5, None)),
    *(("lora_alpha", bad) for bad in (0, -1, 1e300, "8", True, None)),
    *(("init_lora_weights", bad) for bad in ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "eva", "lora_ga", 1)),
    *(("peft_type", bad) for bad in ("PREFIX_TUNING", "EVIL", None, 3)),
    *(("task_type", bad) for bad in ("SEQ_CLS", "SEQ_2_SEQ_LM", "causal_lm")),
    *(("target_modules", bad) for bad in ([], None, "([a-z0-9_.]+)+!", ".*q_proj", ["q.*"], [3], {"a": 1}, [""])),
    *(("exclude_modules", bad) for bad in (".*", ["(a+)+"], 3)),
    *(("layers_to_transform", bad) for bad in (-1, [0, "1"], True, 1.0, "0")),
    *(("rank_pattern", bad) for bad in ({"q_proj": 0}, {"(a+)+": 4}, {"q_proj": True}, ["q_proj"])),
    *(("alpha_pattern", bad) for bad in ({"q_proj": -1}, {".*": 4}, {"q_proj": "4"})),
    *(("auto_mapping", bad) for bad in ({"base_model_class": "x", "parent_library": "os"}, {}, "os", {"a": "b"})),
    ("auto_mapping", {"base_model_class": "x", "parent_library": "transformersx.evil"}),
    ("base_model_name_or_path", "https://example.com/base"),
    ("base_model_name_or_path", "a\x1b[31m"),
    ("base_model_name_or_path", 3),
    ("use_dora", 1),
    ("use_rslora", "true"),
    ("lora_dropout", 2.0),
    ("layers_pattern", "layers"),
    ("bias", "all"),
    ("bias", "lora_only"),
    ("lora_bias", True),
    ("fan_in_fan_out", True),
    ("modules_to_save", ["lm_head"]),
    ("layer_replication", [[0, 2], [1, 2]]),
    ("trainable_token_indices", [1]),
    ("target_parameters", ["experts.gate_up_proj"]),
    ("megatron_config", {}),
    ("megatron_core", "evil.module"),
    ("loftq_config", {"loftq_bits": 4}),
    ("eva_config", {}),
    ("corda_config", {"cache_file": "/etc/passwd"}),
    ("lora_ga_config", {}),
    ("alora_invocation_tokens", [1]),
    ("use_qalora", True),
    ("use_qalora", 0),
    ("use_bdlora", {"nblocks": 2}),
    ("arrow_config", {"top_k": 2}),
    ("kasa_config", {}),
    ("monteclora_config", {}),
    ("velora_config", {}),
    ("ensure_weight_tying", True),
    ("chat_template", "{{ x }}"),
    ("auto_map", {"AutoModel": "evil.py"}),
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_refuses_by_name(field: str, value: Any) -> None:
    message = faults(**{field: value})
    assert f"adapter_config.json: {field}" in message
    assert message.rstrip().endswith(".")


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


BAD_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "line 1 column 1"),
    "array": (b"[]", "expected a JSON object"),
    "mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "utf16": ("{}".encode("utf-16"), "byte order mark"),
    "not utf8": (b'{"a": "\xff"}', "not UTF-8"),
    "duplicate": (b'{"r": 4, "r": 8}', "'r' occurs twice"),
    "nested duplicate": (b'{"rank_pattern": {"q": 4, "q": 8}}', "'q' occurs twice"),
    "nan": (b'{"lora_alpha": NaN}', "NaN is not JSON"),
    "infinity": (b'{"lora_alpha": -Infinity}', "-Infinity is not JSON"),
    "overflow": (b'{"lora_alpha": 1e400}', "out of range"),
    "long integer": (b'{"r": ' + b"1" * 5000 + b"}", "out of range"),
    "deep": (b"[" * 10_000 + b"]" * 10_000, "nested deeper"),
    "large": (b" " * (1 << 20) + b"{}", "at most 1048576"),
    "truncated": (b'{"r": 4', "line 1"),
    "trailing": (b"{} {}", "Extra data"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_refuses_bad_json(case: str) -> None:
    raw, words = BAD_JSON[case]
    assert words in raw_fault(raw)


def test_refuses_a_hostile_pattern_quickly() -> None:
    start = time.perf_counter()
    faults(target_modules="([a-z0-9_.]+)+!", rank_pattern={"([a-z0-9_.]+)+!": 8})
    assert time.perf_counter() - start < 0.5


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
