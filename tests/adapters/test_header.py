"""The safetensors header parser: round trips and agreement with the library. Malformed files: tests/hostile."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from adapters.errors import InvalidAdapter
from adapters.header import TensorSpec, chunks, opened, read_header, write_header
from tests.support.adapters import write_safetensors
from tests.support.broken_files import TEN, TWENTY, entry, file_of

IN_TMP = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
        with opened(tmp_path / "theirs") as file:
            assert b"".join(chunks(file, found[name])) == array.tobytes()
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
    with opened(path) as file, pytest.raises(InvalidAdapter, match="became shorter"):
        list(chunks(file, spec))
