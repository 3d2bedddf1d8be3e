"""Files that are not what they say: malformed safetensors, and other formats, by the number of their case.

Each comes with words that its refusal must say. The tables are data; who reads them decides through which door.
"""

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.adapters import Tensors


def entry(start: int, stop: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


TEN, TWENTY = b"\0" * 8, b"\0" * 16
ZIP = b"PK\x05\x06" + b"\0" * 18
"""An empty archive, which readers of archives find from a file's end."""

Table = dict[str, tuple[bytes, str]]

B15: Table = {
    "empty": (b"", "0 bytes, too short"),
    "seven bytes": (b"\0" * 7, "too short"),
    "no header": (struct.pack("<Q", 0) + b"{}", "does not begin with '{'"),
    "truncated header": (file_of({"a": entry(0, 8)}, TEN)[:30], "header claims"),
    "truncated data": (file_of({"a": entry(0, 8)}, TEN[:-1]), "end at byte"),
    "trailing data": (file_of({"a": entry(0, 8)}, TEN + b"PK"), "end at byte"),
    "trailing zip": (file_of({"a": entry(0, 8)}, TEN + ZIP), "end at byte"),
    "array": (file_of([], TEN), "does not begin with '{'"),
    "leading space": (file_of(b' {"a":1}', TEN), "does not begin with '{'"),
    "not utf8": (file_of(b'{"\xff":1}', TEN), "not UTF-8"),
    "no tensors": (file_of({"__metadata__": {}}), "no tensors"),
    "metadata": (file_of({"__metadata__": {"a": 1}, "a": entry(0, 8)}, TEN), "__metadata__"),
}
B16: Table = {
    "huge length": (file_of({"a": entry(0, 8)}, TEN, 1 << 63), "header claims"),
    "largest length": (file_of({"a": entry(0, 8)}, TEN, (1 << 64) - 1), "header claims"),
    "a byte too long": (file_of({}, length=3), "header claims"),
    "short length": (file_of({"a": entry(0, 8)}, TEN, 20), "header is not valid"),
    "beyond the end": (file_of({"a": entry(0, 1 << 40)}, TEN), "end at byte"),
}
B17: Table = {
    "too many": (file_of({str(n): entry(4 * n, 4 * n + 4) for n in range(101)}, b"\0" * 404), "expected at most"),
    "deep": (file_of(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), "nested deeper"),
    "spaces": (file_of(b"{}" + b" " * (9 << 20)), "expected at most"),
}
B18: Table = {
    "duplicate": (file_of(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 8)).encode(),) * 2), TEN), "'a' occurs twice"),
    "duplicate elsewhere": (
        file_of(b'{"a":%b,"a":%b}' % (json.dumps(entry(0, 8)).encode(), json.dumps(entry(8, 16)).encode()), TWENTY),
        "'a' occurs twice",
    ),
    "duplicate in other letters": (
        file_of(b'{"a":%b,"\\u0061":%b}' % ((json.dumps(entry(0, 8)).encode(),) * 2), TEN),
        "'a' occurs twice",
    ),
    "duplicate in an entry": (
        file_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"shape":[2]}}', TEN),
        "'shape' occurs twice",
    ),
}
B19: Table = {
    "overlap": (file_of({"a": entry(0, 8), "b": entry(4, 12)}, TWENTY[:12]), "overlap others: 'b'"),
    "one place for two": (file_of({"a": entry(0, 8), "b": entry(0, 8)}, TEN), "overlap others: 'b'"),
    "hole": (file_of({"a": entry(0, 8), "b": entry(12, 16)}, TWENTY), "unused bytes before tensors: 'b'"),
    "hole at the beginning": (file_of({"a": entry(4, 8)}, TEN), "unused bytes before tensors: 'a'"),
    "negative offset": (file_of({"a": entry(-8, 0, [2])}, TEN), "data_offsets"),
    "shape lies": (file_of({"a": entry(0, 8, [3])}, TEN), "takes 12 bytes"),
    "shape overflows": (file_of({"a": entry(0, 8, [1 << 32, 1 << 32])}, TEN), "takes"),
    "negative": (file_of({"a": entry(0, 8, [-2])}, TEN), "at most 8 dimensions"),
    "fraction": (file_of({"a": entry(0, 8, [2.0])}, TEN), "at most 8 dimensions"),
    "boolean": (file_of({"a": entry(0, 4, [True])}, TEN), "at most 8 dimensions"),
    "100k dimensions": (file_of({"a": entry(0, 4, [1] * 100_000)}, TEN), "at most 8 dimensions"),
    "zero size": (file_of({"a": entry(0, 0, [0, 1 << 60])}), "is empty"),
    "unknown dtype": (file_of({"a": entry(0, 8, dtype="F3")}, TEN), "unknown dtype"),
    "dtype is a list": (file_of({"a": entry(0, 8, dtype=[])}, TEN), "unknown dtype"),
    "reversed offsets": (file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, TEN), "data_offsets"),
    "extra field": (file_of({"a": entry(0, 8) | {"x": 1}}, TEN), "exactly dtype"),
    "entry is null": (file_of({"a": None}, TEN), "exactly dtype"),
}
B20: Table = {
    "long name": (file_of({"n" * 2_000_000: entry(0, 8)}, TEN), "expected at most"),
}

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 12345\n" % (b"0" * 64)

FOREIGN: Table = {
    "pickle": (b"\x80\x04\x95\x20\0\0\0\0\0\0\0}", "safe_serialization=True"),
    "torch": (b"PK\x03\x04" + b"\0" * 60, "safe_serialization=True"),
    "lfs": (POINTER, "it is a Git LFS pointer, expected safetensors. Run 'git lfs pull'"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 20, "GGUF"),
    "page": (b"<!DOCTYPE html><html>", "web page"),
    "short pickle": (b"\x80\x02.", "pickle"),
}


Change = Callable[[Tensors], Tensors]
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
"""The first layer's query projection in PEFT's words."""
LAYERS = [f"base_model.model.model.layers.{layer}.self_attn.{name}" for layer in "01" for name in ("q_proj", "v_proj")]


def ones(*shape: int) -> Change:
    return replaced(f"{Q0}.lora_A.weight", np.ones(shape, np.float32))


def up(*shape: int) -> Change:
    return replaced(f"{Q0}.lora_B.weight", np.ones(shape, np.float32))


def without(name: str) -> Change:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def plus(name: str, *shape: int) -> Change:
    return lambda tensors: tensors | {name: np.ones(shape, np.float32)}


def replaced(name: str, value: Any) -> Change:
    return lambda tensors: tensors | {name: value}


def renamed(old: str, new: str) -> Change:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def poisoned(value: float, dtype: str = "float32") -> Change:
    def change(tensors: Tensors) -> Tensors:
        bad = tensors[f"{Q0}.lora_B.weight"].copy()
        bad[-1, -1] = value if dtype != "bfloat16" else np.float32(value).view(np.uint32) >> 16
        return tensors | {f"{Q0}.lora_B.weight": bad}

    return change


Changes = dict[str, tuple[Change, tuple[str, ...]]]

B20_NAMES: Changes = {
    "empty name": (plus("", 1), ("belong to the base",)),
    "path as name": (plus("../../etc/passwd", 1), ("belong to the base",)),
    "a megabyte as name": (plus("n" * 1_000_000, 1), ("belong to the base", "'nnn")),
    "control characters": (plus("\x1b[31m\n\u202e", 1), ("belong to the base", "\\x1b")),
}
B21: Changes = {
    "base head": (plus("base_model.model.lm_head.weight", 64, 32), ("belong to the base", "save_embedding_layers")),
    "base norm": (plus("base_model.model.model.norm.weight", 32), ("belong to the base",)),
    "base layer": (plus(f"{Q0}.base_layer.weight", 32, 32), ("belong to the base",)),
    "bias": (plus(f"{Q0}.bias", 32), ("belong to the base",)),
    "other adapter": (plus(f"{Q0}.lora_A.victim.weight", 4, 32), ("with an adapter's name inside", "victim")),
    "modules to save": (plus("base_model.model.lm_head.modules_to_save.weight", 64, 32), ("of modules_to_save",)),
    "lora bias": (plus(f"{Q0}.lora_B.bias", 32), ("not named as PEFT names them",)),
    "embedding": (plus("base_model.model.model.embed_tokens.lora_embedding_A", 4, 64), ("adapted embedding",)),
    "experts": (plus(f"{Q0[:32]}1.mlp.experts.gate_up_proj.lora_A.weight", 4, 32), ("it is fused",)),
    "other layer": (plus(Q0.replace("layers.0", "layers.9") + ".lora_A.weight", 4, 32), ("does not have",)),
    "magnitude": (plus(f"{Q0}.lora_magnitude_vector", 32), ("the config does not call for", "use_dora")),
}
B22: Changes = {
    "wrong prefix": (
        renamed("base_model.model.", ""),
        ("8 of 8 tensors are missing", "and 3 more", "not named as PEFT"),
    ),
}
B23: Changes = {
    "missing B": (without(f"{Q0}.lora_B.weight"), ("1 of 8 tensors are missing", "q_proj.lora_B")),
    "missing half": (
        lambda tensors: {key: value for key, value in tensors.items() if "lora_A" in key},
        ("4 of 8 tensors are missing", *(f"{layer}.lora_B.weight" for layer in LAYERS)),
    ),
    "all but one": (
        lambda tensors: dict(list(tensors.items())[:1]),
        (
            "7 of 8 tensors are missing",
            f"'{Q0}.lora_B.weight', '{LAYERS[1]}.lora_A.weight', '{LAYERS[1]}.lora_B.weight', "
            f"'{LAYERS[2]}.lora_A.weight', '{LAYERS[2]}.lora_B.weight' and 2 more",
        ),
    ),
}
B24: Changes = {
    "rank": (ones(8, 32), ("expected shape [4, 32], got [8, 32]", "rank is 8")),
    "transposed": (ones(32, 4), ("expected shape [4, 32], got [32, 4]", "transposed")),
    "hidden size": (ones(4, 48), ("expected shape [4, 32], got [4, 48]", "trained on 'tiny-llama'")),
    "one dimension": (ones(128), ("expected shape [4, 32], got [128]",)),
    "rank of B": (up(32, 8), ("expected shape [32, 4], got [32, 8]", "rank is 8")),
    "B transposed": (up(4, 32), ("expected shape [32, 4], got [4, 32]", "transposed")),
    "output size": (up(48, 4), ("expected shape [32, 4], got [48, 4]", "trained on 'tiny-llama'")),
}
B25: Changes = {
    "nan": (poisoned(float("nan")), ("1 elements are infinite", "q_proj.lora_B")),
    "infinity": (poisoned(float("-inf")), ("1 elements are infinite", "q_proj.lora_B")),
}
B26: Changes = {
    "int64": (replaced(f"{Q0}.lora_A.weight", np.ones((4, 32), np.int64)), ("dtype I64, expected F32",)),
    "float64": (replaced(f"{Q0}.lora_A.weight", np.ones((4, 32))), ("dtype F64",)),
}
