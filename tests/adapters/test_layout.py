"""How tensors are read: every byte once, in the digest's order, and those that lie evenly together."""

import random
from collections.abc import Mapping

import pytest

from adapters import layout
from adapters.header import ITEM_BYTES, TensorSpec
from adapters.identity import tensor_record
from adapters.layout import lay_out

MODULES = ("q_proj", "v_proj")
FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")


def filed(names: list[str], shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> dict[str, TensorSpec]:
    """The tensors side by side in this order, behind a header of 80 bytes."""
    specs, at = {}, 80
    for name in names:
        size = ITEM_BYTES[dtypes[name]]
        for dimension in shapes[name]:
            size *= dimension
        specs[name] = TensorSpec(dtypes[name], shapes[name], at, at + size)
        at += size
    return specs


def drawn(seed: int) -> dict[str, TensorSpec]:
    """Layers of a few ranks and dtypes, in the order of their names or in none."""
    draw = random.Random(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for layer in range(12):
        for module in MODULES:
            rank, dtype = draw.choice((4, 4, 4, 9)), draw.choice(("F16", "F16", "F16", "F32"))
            for factor, shape in zip(FACTORS, ((rank, 32), (24, rank), (24,)), strict=True):
                name = f"base_model.model.layers.{layer}.{module}{factor}"
                shapes[name], dtypes[name] = shape, dtype
    names = sorted(shapes)
    if draw.random() < 0.3:
        draw.shuffle(names)
    return filed(names, shapes, dtypes)


@pytest.mark.parametrize("piece_bytes", [1, 1000, 1 << 20])
@pytest.mark.parametrize("seed", range(20))
def test_pieces_hold_every_tensor_where_it_lies(seed: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "PIECE_BYTES", piece_bytes)
    tensors = drawn(seed)
    plan = lay_out(tensors)
    hashed = [
        (record, piece.start + begin, piece.start + end) for piece in plan.pieces for record, begin, end in piece.spans
    ]
    assert hashed == [
        (tensor_record(name, tensors[name]), tensors[name].start, tensors[name].stop) for name in sorted(tensors)
    ]
    groups = list(plan.groups.items())
    found: dict[str, TensorSpec] = {}
    for piece in plan.pieces:
        for run in piece.runs:
            group, names = groups[run.group]
            for index in range(run.count):
                name, begin = names[run.first + index], piece.start + run.begin + index * run.step
                assert piece.dtype == group.dtype and name not in found and name.endswith(group.module + group.suffix)
                found[name] = TensorSpec(
                    group.dtype, group.shape, begin, begin + tensors[name].stop - tensors[name].start
                )
    assert found == tensors


def test_equal_layers_are_one_run_a_factor() -> None:
    names = [f"layers.{layer}.{module}{factor}" for layer in range(12) for module in MODULES for factor in FACTORS[:2]]
    shapes = {name: (4, 32) if ".lora_A" in name else (24, 4) for name in names}
    (piece,) = lay_out(filed(sorted(names), shapes, dict.fromkeys(names, "F16"))).pieces
    assert [(run.first, run.count) for run in piece.runs] == [(0, 12)] * 4


def test_what_a_piece_gives_the_digest() -> None:
    name = "layers.0.q_proj.lora_A.weight"
    tensors = filed([name], {name: (1, 2)}, {name: "F16"})
    (piece,) = lay_out(tensors).pieces
    assert b"".join(piece.hashed(memoryview(b"abcd"))) == tensor_record(name, tensors[name]) + b"abcd"
