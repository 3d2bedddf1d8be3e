"""Reading in a sandbox: the same results as in this process, and an end to whatever meets a limit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adapters.checkpoint import read, read_directory
from adapters.errors import InvalidAdapter, UnsupportedMedia
from adapters.provenance import QUANTIZATION, WEIGHTS
from adapters.sandbox import SandboxedReader
from tests.support.adapters import grafts_for, llama_shape, peft_config, random_tensors, write_adapter

SHAPE = llama_shape()
MIB = 1 << 20


def test_what_is_valid_there_is_valid_here(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, SHAPE, kind="rsdora", dtype="bfloat16")
    assert read_directory(folder, SHAPE, SandboxedReader()) == read_directory(folder, SHAPE)


def test_the_record_of_the_base_comes_along(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    record = {WEIGHTS: f"sha256:{1:064x}", QUANTIZATION: "nf4"}
    save_file(random_tensors(grafts_for(SHAPE)), tmp_path / "w", metadata=record)
    found = SandboxedReader()(json.dumps(peft_config()).encode(), tmp_path / "w", SHAPE)
    assert found == read(json.dumps(peft_config()).encode(), tmp_path / "w", SHAPE)
    assert found.manifest.trained_on is not None and found.manifest.trained_on.quantization == "nf4"


def test_faults_are_the_same(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, SHAPE, bias="all", change=lambda tensors: {"x": np.ones(3, np.float32)})
    faults = []
    for reader in (read, SandboxedReader()):
        with pytest.raises(InvalidAdapter) as caught:
            read_directory(folder, SHAPE, reader)
        faults.append(caught.value.faults)
    assert faults[0] == faults[1]
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UnsupportedMedia, match="git lfs pull"):
        read_directory(folder, SHAPE, SandboxedReader())


def test_a_config_that_is_not_text_crosses_over(tmp_path: Path) -> None:
    write_adapter(tmp_path, SHAPE)
    with pytest.raises(InvalidAdapter, match="not UTF-8"):
        SandboxedReader()(b'{"\xff": 1}', tmp_path / "adapter_model.safetensors", SHAPE)


def test_time_is_limited(tmp_path: Path) -> None:
    write_adapter(tmp_path, SHAPE)
    with pytest.raises(InvalidAdapter, match="limit of 0.001 seconds"):
        read_directory(tmp_path, SHAPE, SandboxedReader(seconds=0.001))


def test_memory_is_limited(tmp_path: Path) -> None:
    """A config that is legal in length, and takes far more memory as objects; under the least that may be set."""
    wide, reader = llama_shape(layers=1, hidden=16384), SandboxedReader(memory=40 * MIB)
    folder = write_adapter(tmp_path, wide, rank=128, targets=("q_proj",))
    assert read_directory(folder, wide, reader) == read_directory(folder, wide), "one with tensors of 8 MiB fits"
    config = b'{"x": [' + b"{}," * 300_000 + b"{}]}"
    with pytest.raises(InvalidAdapter, match="limit of 40 MiB of memory"):
        reader(config, tmp_path / "adapter_model.safetensors", wide)


def test_the_reader_needs_no_torch_and_writes_no_file(tmp_path: Path) -> None:
    script = (
        "import sys; from adapters import sandbox_child as child;"
        "child._read = lambda _: str(open(sys.argv[1], 'w').write('x')); child.main(1 << 30, 5)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], input=b"", capture_output=True)
    assert done.returncode != 0 and (tmp_path / "x").read_bytes() == b""
