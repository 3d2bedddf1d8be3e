"""Cases 15 to 27: a weights file that is broken, hostile, or another adapter's. The uploads are as small as can be."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from adapters.checkpoint import read_directory
from adapters.errors import InvalidAdapter
from adapters.sandbox import SandboxedReader
from tests.support.adapters import write_adapter
from tests.support.broken_files import (
    B15,
    B16,
    B17,
    B18,
    B19,
    B20,
    B20_NAMES,
    B21,
    B22,
    B23,
    B24,
    B25,
    B26,
    FOREIGN,
    Q0,
    Changes,
    Table,
    entry,
    file_of,
    poisoned,
    replaced,
)
from tests.support.checked_server import SHAPE, CheckedServer
from tests.support.reader import cost_of_reading

MILLION = file_of(b"{" + b",".join(b'"%d":%b' % (n, json.dumps(entry(0, 0, [0])).encode()) for n in range(1_000_000)))

SPACES = file_of(b"{}" + b" " * (95 << 20))

FULL = file_of(b"{" + b",".join(b'"%x":{}' % n for n in range(100_000)) + b"}")
"""As many entries as a header may have bytes for that is read to its end."""


def broken(checked: CheckedServer, good: Path, table: Table, case: str) -> None:
    content, words = table[case]
    message = checked.refused(checked.post((good / "adapter_config.json").read_bytes(), content))
    assert words in message and len(message) < 1000


def changed(checked: CheckedServer, folder: Path, table: Changes, case: str) -> None:
    change, words = table[case]
    message = checked.refused(checked.upload(write_adapter(folder, SHAPE, change=change)))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("case", B15)
def test_b15_a_file_that_is_cut_short_or_too_long(checked: CheckedServer, good: Path, case: str) -> None:
    broken(checked, good, B15, case)


@pytest.mark.parametrize("case", B16)
def test_b16_a_header_that_lies_about_its_length(checked: CheckedServer, good: Path, case: str) -> None:
    broken(checked, good, B16, case)


@pytest.mark.parametrize("case", B17)
def test_b17_a_header_that_would_cost_time_and_memory(checked: CheckedServer, good: Path, case: str) -> None:
    broken(checked, good, B17, case)


def test_b17_a_million_tensors_are_not_even_parsed(checked: CheckedServer, good: Path) -> None:
    tracemalloc.start()
    reply = checked.post((good / "adapter_config.json").read_bytes(), MILLION)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "expected at most" in checked.refused(reply)
    assert peak < 8 * len(MILLION), "the client's copies and the form's; the header's million of objects would be more"


def test_b17_the_reader_itself_takes_no_more_than_it_is_given(good: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes((good / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.safetensors").write_bytes(MILLION)
    with pytest.raises(InvalidAdapter, match="expected at most"):
        read_directory(tmp_path, SHAPE, SandboxedReader(memory=128 << 20))


@pytest.mark.parametrize(
    ("header", "words"),
    [(MILLION, b"bytes, expected"), (SPACES, b"bytes, expected"), (FULL, b"100000 tensors, expected")],
    ids=["a million tensors", "spaces", "all that is read"],
)
def test_b17_reading_it_takes_less_than_a_second_and_50_megabytes(
    good: Path, tmp_path: Path, header: bytes, words: bytes
) -> None:
    """More than a good adapter takes, which is what Python takes to start."""
    config, bad = (good / "adapter_config.json").read_bytes(), tmp_path / "bad"
    bad.write_bytes(header)
    usual = cost_of_reading(config, good / "adapter_model.safetensors", SHAPE)
    cost = cost_of_reading(config, bad, SHAPE)
    assert words in cost.verdict and b"faults" not in usual.verdict
    assert cost.cpu_s - usual.cpu_s < 1, "processor time, so that a busy machine does not count"
    assert cost.peak - usual.peak < 50_000_000


@pytest.mark.parametrize("case", B18)
def test_b18_a_tensor_that_is_there_twice(checked: CheckedServer, good: Path, case: str) -> None:
    broken(checked, good, B18, case)


@pytest.mark.parametrize("case", B19)
def test_b19_tensors_that_overlap_or_cannot_be(checked: CheckedServer, good: Path, case: str) -> None:
    broken(checked, good, B19, case)


@pytest.mark.parametrize("case", B20)
def test_b20_a_name_of_megabytes(checked: CheckedServer, good: Path, case: str) -> None:
    broken(checked, good, B20, case)


@pytest.mark.parametrize("case", B20_NAMES)
def test_b20_names_that_are_paths(checked: CheckedServer, tmp_path: Path, case: str) -> None:
    changed(checked, tmp_path, B20_NAMES, case)


def test_b20_a_megabyte_as_name_is_not_told_beside_a_config_that_is_broken_too(
    checked: CheckedServer, tmp_path: Path
) -> None:
    """Then nothing says which names there should be, and each tensor is looked at under its own."""
    named = {"n" * 1_000_000: np.full(1, np.nan, np.float32), "\n": np.full(1, np.inf, np.float32)}
    folder = write_adapter(tmp_path, SHAPE, change=lambda tensors: tensors | named)
    reply = checked.post(b"{", (folder / "adapter_model.safetensors").read_bytes())
    assert "(3 faults)" in checked.refused(reply) and len(reply.content) < 5000


@pytest.mark.parametrize("case", B21)
def test_b21_tensors_of_the_base_or_of_others(checked: CheckedServer, tmp_path: Path, case: str) -> None:
    changed(checked, tmp_path, B21, case)


@pytest.mark.parametrize("case", B22)
def test_b22_all_names_wrong_is_never_an_adapter_that_does_nothing(
    checked: CheckedServer, tmp_path: Path, case: str
) -> None:
    changed(checked, tmp_path, B22, case)


@pytest.mark.parametrize("case", B23)
def test_b23_missing_tensors_are_listed(checked: CheckedServer, tmp_path: Path, case: str) -> None:
    changed(checked, tmp_path, B23, case)


@pytest.mark.parametrize("case", B24)
def test_b24_shapes_that_do_not_fit_are_told_with_what_was_expected(
    checked: CheckedServer, tmp_path: Path, case: str
) -> None:
    changed(checked, tmp_path, B24, case)


@pytest.mark.parametrize("case", B25)
def test_b25_what_is_not_finite_is_named(checked: CheckedServer, tmp_path: Path, case: str) -> None:
    changed(checked, tmp_path, B25, case)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_b25_halves_that_are_not_finite(checked: CheckedServer, tmp_path: Path, dtype: str, value: float) -> None:
    folder = write_adapter(tmp_path, SHAPE, dtype=dtype, change=poisoned(value, dtype))
    message = checked.refused(checked.upload(folder))
    assert f"{Q0}.lora_B.weight: 1 elements are infinite" in message


@pytest.mark.parametrize("case", B26)
def test_b26_dtypes_that_are_not_served(checked: CheckedServer, tmp_path: Path, case: str) -> None:
    changed(checked, tmp_path, B26, case)


def test_b26_eight_bits_are_not_served(checked: CheckedServer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, SHAPE, change=replaced(f"{Q0}.lora_A.weight", np.ones((4, 32), np.int8)))
    weights = folder / "adapter_model.safetensors"
    for dtype in (b'"I8"', b'"F8_E4M3"'):
        weights.write_bytes(_header_with(weights.read_bytes(), dtype))
        assert "expected F32, F16 or BF16" in checked.refused(checked.upload(folder))


def _header_with(file: bytes, dtype: bytes) -> bytes:
    """The same file with another word for its eight bits."""
    length = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + length])).encode().replace(b'"I8"', dtype)
    return file_of(header, file[8 + length :])


@pytest.mark.parametrize("case", FOREIGN)
def test_b27_other_formats_are_called_by_their_names(checked: CheckedServer, good: Path, case: str) -> None:
    content, words = FOREIGN[case]
    reply = checked.post((good / "adapter_config.json").read_bytes(), content)
    assert words in checked.refused(reply, 415, "unsupported_media")
