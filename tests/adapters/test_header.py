"""The safetensors header parser: round trips, agreement with the library, and every malformed file refused."""

import json
import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from adapters.errors import InvalidAdapter, UnsupportedMedia
from adapters.header import TensorSpec, chunks, read_header, write_header
from tests.support.adapters import write_safetensors

IN_TMP = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def entry(start: int, stop: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def refused(path: Path, content: bytes) -> str:
    file = path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(InvalidAdapter) as caught:
        read_header(file, 100)
    assert str(path) not in str(caught.value)
    return str(caught.value)


TEN, TWENTY = b"\0" * 8, b"\0" * 16
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes, too short"),
    "seven bytes": (b"\0" * 7, "too short"),
    "no header": (struct.pack("<Q", 0) + b"{}", "does not begin with '{'"),
    "truncated header": (file_of({"a": entry(0, 8)}, TEN)[:30], "header claims"),
    "huge length": (file_of({"a": entry(0, 8)}, TEN, 1 << 63), "header claims"),
    "short length": (file_of({"a": entry(0, 8)}, TEN, 20), "header is not valid"),
    "array": (file_of([], TEN), "does not begin with '{'"),
    "leading space": (file_of(b' {"a":1}', TEN), "does not begin with '{'"),
    "not utf8": (file_of(b'{"\xff":1}', TEN), "not UTF-8"),
    "no tensors": (file_of({"__metadata__": {}}), "no tensors"),
    "metadata": (file_of({"__metadata__": {"a": 1}, "a": entry(0, 8)}, TEN), "__metadata__"),
    "duplicate": (file_of(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 8)).encode(),) * 2), TEN), "'a' occurs twice"),
    "truncated data": (file_of({"a": entry(0, 8)}, TEN[:-1]), "end at byte"),
    "trailing data": (file_of({"a": entry(0, 8)}, TEN + b"PK"), "end at byte"),
    "overlap": (file_of({"a": entry(0, 8), "b": entry(4, 12)}, TWENTY[:12]), "overlap others: 'b'"),
    "hole": (file_of({"a": entry(0, 8), "b": entry(12, 16)}, TWENTY), "unused bytes before tensors: 'b'"),
    "beyond the end": (file_of({"a": entry(0, 1 << 40)}, TEN), "end at byte"),
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
    "too many": (file_of({str(n): entry(4 * n, 4 * n + 4) for n in range(101)}, b"\0" * 404), "at most 100"),
    "deep": (file_of(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), "nested deeper"),
    "spaces": (file_of(b"{}" + b" " * (9 << 20)), "expected at most"),
    "long name": (file_of({"n" * 2_000_000: entry(0, 8)}, TEN), "expected at most"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_refuses_malformed_files(tmp_path: Path, case: str) -> None:
    content, words = MALFORMED[case]
    message = refused(tmp_path, content)
    assert words in message
    assert len(message) < 1000


FOREIGN: dict[str, tuple[bytes, str]] = {
    "pickle": (b"\x80\x04\x95\x20\0\0\0\0\0\0\0}", "safe_serialization=True"),
    "torch": (b"PK\x03\x04" + b"\0" * 60, "safe_serialization=True"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 20, "GGUF"),
    "page": (b"<!DOCTYPE html><html>", "web page"),
    "short pickle": (b"\x80\x02.", "pickle"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_recognises_other_formats(tmp_path: Path, case: str) -> None:
    content, words = FOREIGN[case]
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UnsupportedMedia, match=words):
        read_header(path, 10)


def test_a_header_as_long_as_a_pickles_magic_is_read(tmp_path: Path) -> None:
    header = json.dumps({"a": entry(0, 8)}).encode()
    content = file_of(header + b" " * (0x0480 - len(header)), TEN)
    assert content.startswith(b"\x80\x04")
    (tmp_path / "x").write_bytes(content)
    assert list(read_header(tmp_path / "x", 1).tensors) == ["a"]


def test_refuses_directories_and_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidAdapter, match="regular file"):
        read_header(tmp_path / "pipe", 1)


def test_a_million_tensors_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    empty = json.dumps(entry(0, 0, [0])).encode()
    path = tmp_path / "x"
    path.write_bytes(file_of(b"{" + b",".join(b'"%d":%b' % (n, empty) for n in range(1_000_000)) + b"}"))
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(InvalidAdapter, match="expected at most"):
        read_header(path, 1000)
    spent, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 1 and peak < 50 << 20


NAMES = st.text(st.characters(codec="utf-8"), max_size=20)
ARRAYS = st.builds(
    lambda dtype, shape: np.full(shape, 3, dtype),
    st.sampled_from(["float32", "float16", "int64", "int8"]),
    st.lists(st.integers(1, 4), max_size=3),
)


@IN_TMP
@given(st.dictionaries(NAMES.filter(lambda name: name != "__metadata__"), ARRAYS, min_size=1, max_size=6))
def test_agrees_with_the_library_on_valid_files(tmp_path: Path, tensors: dict[str, Any]) -> None:
    save_file(tensors, tmp_path / "theirs", metadata={"format": "np"})
    found = read_header(tmp_path / "theirs", 10).tensors
    assert {name: spec.shape for name, spec in found.items()} == {name: a.shape for name, a in tensors.items()}
    for name, array in tensors.items():
        assert b"".join(chunks(tmp_path / "theirs", found[name])) == array.tobytes()
    write_safetensors(tmp_path / "ours", tensors)
    assert all(np.array_equal(array, tensors[name]) for name, array in load_file(tmp_path / "ours").items())


@IN_TMP
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_never_accepts_what_the_library_refuses(tmp_path: Path, at: int, junk: bytes) -> None:
    raw = bytearray(file_of({"a": entry(0, 8), "bb": entry(8, 16, [2, 1])}, TWENTY))
    at %= len(raw)
    raw[at : at + len(junk)] = junk
    path = tmp_path / "x"
    path.write_bytes(raw)
    try:
        found = read_header(path, 10).tensors
    except InvalidAdapter:
        return
    try:
        with safe_open(path, framework="np") as theirs:
            assert {name: tuple(theirs.get_slice(name).get_shape()) for name in theirs.offset_keys()} == {
                name: spec.shape for name, spec in found.items()
            }
    except SafetensorError as error:
        pytest.fail(f"the library refuses it: {error}")


def test_written_headers_are_aligned() -> None:
    head, moved = write_header({"a": TensorSpec("F32", (2,), 0, 8), "b": TensorSpec("F16", (1,), 100, 102)})
    assert len(head) % 8 == 0
    assert moved == {
        "a": TensorSpec("F32", (2,), len(head), len(head) + 8),
        "b": TensorSpec("F16", (1,), len(head) + 8, len(head) + 10),
    }


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x", {"a": np.ones(1000, np.float32)})
    spec = read_header(path, 1).tensors["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidAdapter, match="became shorter"):
        list(chunks(path, spec))
