"""Adapters in memory: true rank, the base's dtype, the bytes that were announced, and DoRA's gains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters.bank import Bank, Loaded, load, num_bytes
from adapters.checkpoint import Checkpoint, read_directory
from adapters.errors import InvalidAdapter
from tests.support.adapters import Tensors, llama_shape, random_tensors, write_adapter

SHAPE = llama_shape()
CPU = torch.device("cpu")


def base_weight(path: str) -> Tensor:
    linear = SHAPE.linears[path]
    return torch.randn(linear.out_features, linear.in_features, generator=torch.Generator().manual_seed(len(path)))


def no_weight(path: str) -> Tensor:
    raise AssertionError("only DoRA needs the base's weight")


def checkpoint(root: Path, **how: object) -> Checkpoint:
    return read_directory(write_adapter(root / "adapter", SHAPE, **how), SHAPE)  # type: ignore[arg-type]


def test_tensors_are_what_the_file_holds(tmp_path: Path) -> None:
    read = checkpoint(tmp_path, rank=4, ranks={"v_proj": 7}, seed=3)
    loaded = load(read, torch.float32, no_weight)
    raw = random_tensors(read.manifest.grafts, seed=3)
    assert loaded.parts.keys() == {graft.path for graft in read.manifest.grafts}
    for graft in read.manifest.grafts:
        low, prefix = loaded.parts[graft.path].low, f"base_model.model.{graft.path}"
        assert low.rank == graft.rank and low.scaling == graft.scaling
        assert np.array_equal(low.a_RI.numpy(), raw[f"{prefix}.lora_A.weight"])
        assert np.array_equal(low.b_RO.numpy().T, raw[f"{prefix}.lora_B.weight"])
        assert loaded.parts[graft.path].gain is None and low.b_RO.is_contiguous()


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "rsdora"])
def test_the_bytes_are_those_announced(tmp_path: Path, kind: str, dtype: torch.dtype, stored: str) -> None:
    read = checkpoint(tmp_path, kind=kind, dtype=stored)
    loaded = load(read, dtype, base_weight)
    bank = Bank(CPU)
    bank.place(loaded)
    assert bank.num_bytes == num_bytes(read.manifest, dtype.itemsize)
    assert {part.low.a_RI.dtype for part in loaded.parts.values()} == {dtype}
    assert len({part.low.a_RI.untyped_storage().data_ptr() for part in loaded.parts.values()}) == 1, "one allocation"


def test_gains_are_magnitudes_over_the_norms_of_adapted_rows(tmp_path: Path) -> None:
    read = checkpoint(tmp_path, kind="dora", seed=5, scale=0.3)
    loaded = load(read, torch.float32, base_weight)
    raw = random_tensors(read.manifest.grafts, seed=5, scale=0.3)
    for graft in read.manifest.grafts:
        low, gain = loaded.parts[graft.path].low, loaded.parts[graft.path].gain
        adapted = base_weight(graft.path).double() + graft.scaling * low.b_RO.double().T @ low.a_RI.double()
        magnitude = torch.from_numpy(raw[f"base_model.model.{graft.path}.lora_magnitude_vector"]).double()
        assert gain is not None and gain.dtype == torch.float32
        assert torch.allclose(gain.double(), magnitude / adapted.norm(dim=1), rtol=1e-5)


def enormous(tensors: Tensors) -> Tensors:
    return {name: values * 1e6 if "lora_B" in name else values for name, values in tensors.items()}


def test_numbers_too_large_for_the_bases_dtype_are_refused(tmp_path: Path) -> None:
    """In float16 they would be infinite, and 0 * inf in a neighbour's row is NaN."""
    read = checkpoint(tmp_path, change=enormous)
    load(read, torch.bfloat16, no_weight)
    with pytest.raises(InvalidAdapter, match="too large for torch.float16"):
        load(read, torch.float16, no_weight)


def test_placing_and_dropping(tmp_path: Path) -> None:
    loaded: Loaded = load(checkpoint(tmp_path), torch.float32, no_weight)
    bank, id = Bank(CPU), loaded.manifest.id
    bank.place(loaded)
    assert id in bank and bank.get(id).parts.keys() == loaded.parts.keys()
    assert bank.part(id, "model.layers.0.self_attn.q_proj") is not None
    assert bank.part(id, "model.layers.0.self_attn.k_proj") is None
    bank.drop(id)
    assert id not in bank and bank.num_bytes == 0
