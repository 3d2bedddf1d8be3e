"""The bank: what is placed is there, at the bytes that were announced, until it is dropped."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.bank import Bank, Loaded, PackedParts, num_bytes
from adapters.checkpoint import read_directory
from adapters.loading import Loader
from adapters.manifest import Kind
from native.tables import LowRankPart, PartTable, part_table
from tests.support.adapters import llama_shape, write_adapter

SHAPE = llama_shape()
CPU = torch.device("cpu")


def base_weight(path: str) -> Tensor:
    linear = SHAPE.linears[path]
    return torch.ones(linear.out_features, linear.in_features)


def adapter(root: Path, dtype: torch.dtype = torch.float32, kind: Kind = "lora", stored: str = "float32") -> Loaded:
    folder = write_adapter(root / "adapter", SHAPE, kind=kind, dtype=stored)
    return Loader(dtype, base_weight).load(read_directory(folder, SHAPE))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "rsdora"])
def test_the_bytes_are_those_announced(tmp_path: Path, kind: Kind, dtype: torch.dtype, stored: str) -> None:
    loaded = adapter(tmp_path, dtype, kind=kind, stored=stored)
    bank = Bank(CPU)
    bank.place(loaded)
    assert bank.num_bytes == num_bytes(loaded.manifest, dtype.itemsize)
    assert {part.low.a_RI.dtype for part in loaded.parts.values()} == {dtype}
    assert len({part.low.a_RI.untyped_storage().data_ptr() for part in loaded.parts.values()}) == 1, "one allocation"


def test_placing_and_dropping(tmp_path: Path) -> None:
    loaded = adapter(tmp_path)
    bank, id = Bank(CPU), loaded.manifest.id
    bank.place(loaded)
    assert id in bank and bank.get(id).parts.keys() == loaded.parts.keys()
    assert bank.part(id, "model.layers.0.self_attn.q_proj") is not None
    assert bank.part(id, "model.layers.0.self_attn.k_proj") is None
    bank.drop(id)
    assert id not in bank and bank.num_bytes == 0


def test_packed_parts_are_where_kernels_read_them(tmp_path: Path) -> None:
    """The oracle is the table of the parts one by one. Copied elsewhere, they are the same there."""
    loaded = adapter(tmp_path, torch.bfloat16, stored="bfloat16")
    numbers = {path: number for number, path in enumerate(sorted(SHAPE.linears, reverse=True))}
    moved = loaded.moved([loaded.allocations[0].clone()])
    for one in (loaded, moved):
        assert isinstance(one.parts, PackedParts)
        assert bytes(one.parts.table(numbers).entries) == bytes(one_by_one(one, numbers).entries)
    for path, part in loaded.parts.items():
        assert torch.equal(part.low.a_RI, moved.parts[path].low.a_RI)
        assert torch.equal(part.low.b_RO, moved.parts[path].low.b_RO)
        assert part.low.a_RI.data_ptr() != moved.parts[path].low.a_RI.data_ptr()


def one_by_one(loaded: Loaded, numbers: dict[str, int]) -> PartTable:
    lows = {path: part.low for path, part in loaded.parts.items()}
    parts = {numbers[path]: LowRankPart(low.a_RI, low.b_RO, low.scaling) for path, low in lows.items()}
    return part_table(parts, len(numbers))
