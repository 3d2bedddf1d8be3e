"""The stage: adapters side by side in memory of a known size, applied as the definition says."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.bank import Bank, Loaded, Part
from adapters.checkpoint import read_directory
from adapters.loading import Loader
from adapters.manifest import AdapterId
from adapters.stage import NO_GAIN, UNIT, Stage, Staged, unit_bytes, units_within
from tests.support.adapters import KINDS, MLP, llama_shape, write_adapter

CPU = torch.device("cpu")
SHAPE = llama_shape()
ONE_BY_ONE = (("model.layers.0.self_attn.q_proj",), ("model.layers.1.mlp.down_proj",), ("lm_head",))
LAYER = tuple(
    tuple(f"model.layers.0.{name}" for name in names.split())
    for names in (
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj mlp.up_proj",
        "mlp.down_proj",
    )
)


def weight(path: str) -> Tensor:
    linear = SHAPE.linears[path]
    return torch.ones(linear.out_features, linear.in_features)


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """Adapters of every kind, of ranks 1 to 9, some on the attention and some on the MLP."""
    filled = Bank(CPU)
    for number, kind in enumerate((*KINDS, *KINDS)):
        targets = MLP if number % 2 else ("q_proj", "v_proj")
        folder = write_adapter(
            tmp_path / str(number), SHAPE, kind=kind, rank=1 + number, seed=number, targets=targets, scale=0.3
        )
        filled.place(Loader(torch.float32, weight).load(read_directory(folder, SHAPE)))
    return filled


def adapters(bank: Bank) -> list[AdapterId]:
    return list(bank._placed)


def staged(stage: Stage, owners: Sequence[AdapterId | None]) -> Staged:
    placement = stage.place([owner for owner in dict.fromkeys(owners) if owner is not None])
    assert placement is not None
    outside = torch.ones(len(owners), placement.width, dtype=torch.bool)
    for row, owner in enumerate(owners):
        if owner is not None:
            outside[row, placement.ranks[owner].start : placement.ranks[owner].stop] = False
    gains = torch.tensor([placement.gains.get(owner, NO_GAIN) if owner else NO_GAIN for owner in owners])
    return Staged(stage, outside, gains if placement.gains else None)


def inputs(families: Sequence[Sequence[str]], rows: int) -> Iterator[tuple[str, Tensor]]:
    for family in families:
        x = torch.randn(rows, SHAPE.linears[family[0]].in_features)
        yield from ((path, x) for path in family)


def plain(part: Part | None, x: Tensor) -> tuple[Tensor, Tensor | float]:
    """What one row gains, and its gain."""
    if part is None:
        return torch.zeros((), dtype=torch.float64), 1.0
    plus = part.low.scaling * (x.double() @ part.low.a_RI.double().T) @ part.low.b_RO.double()
    return plus, 1.0 if part.gain is None else part.gain.double()


def check(
    bank: Bank, stage: Stage, owners: Sequence[AdapterId | None], families: Sequence[Sequence[str]] = ONE_BY_ONE
) -> None:
    rows = staged(stage, owners)
    for path, x in inputs(families, len(owners)):
        change = rows.change(path, x)
        assert change is not None
        for row, owner in enumerate(owners):
            plus, gain = plain(None if owner is None else bank.part(owner, path), x[row])
            assert torch.allclose(change.plus_TO[row].double(), plus.expand(change.plus_TO.shape[1]), atol=1e-5)
            got = change.gains[0][1][row].double() if change.gains else torch.ones(change.plus_TO.shape[1])
            assert torch.allclose(got.double(), torch.as_tensor(gain).double().expand(got.shape)), (row, path)


def test_each_row_gains_what_its_own_adapter_says(bank: Bank) -> None:
    ids = adapters(bank)
    stage = Stage(bank, SHAPE.linears, torch.float32, 3)
    check(bank, stage, [ids[0], ids[3], None, ids[2], ids[2], None])
    check(bank, stage, [ids[5], ids[0], None])
    check(bank, stage, [ids[7], ids[6], ids[3], ids[5], ids[4]])
    check(bank, stage, [ids[1], None])


def test_an_adapter_that_leaves_the_bank_and_returns_is_still_on_stage(bank: Bank) -> None:
    ids = adapters(bank)
    stage = Stage(bank, SHAPE.linears, torch.float32, 1)
    check(bank, stage, [ids[1], ids[2]])
    loaded: Loaded = bank.get(ids[1])
    bank.drop(ids[1])
    check(bank, stage, [ids[2]])
    bank.place(loaded)
    check(bank, stage, [ids[1], ids[2]])


def test_adapters_that_do_not_fit_are_refused(bank: Bank) -> None:
    ids = adapters(bank)
    stage = Stage(bank, SHAPE.linears, torch.float32, 1)
    assert stage.place(ids) is None, "36 ranks on 16 rows"
    assert stage.place([ids[2], ids[3]]) is None, "two gains on one row"
    check(bank, stage, [ids[2], None])
    assert Stage(bank, SHAPE.linears, torch.float32, 0).place([ids[0]]) is None


def test_a_copy_that_fails_leaves_no_rows_allocated_that_were_never_filled(bank: Bank) -> None:
    ids = adapters(bank)
    stage = Stage(bank, SHAPE.linears, torch.float32, 1)
    loaded = bank.get(ids[0])
    path, part = next(iter(loaded.parts.items()))
    spoilt = Part(type(part.low)(part.low.a_RI[:, :3], part.low.b_RO, part.low.scaling))
    bank.place(Loaded(loaded.manifest, {**loaded.parts, path: spoilt}))
    with pytest.raises(RuntimeError):
        stage.place([ids[0]])
    bank.place(loaded)
    check(bank, stage, [ids[0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.9, 1.0, 2.5, 40.0])
def test_it_takes_at_most_half_of_the_budget_and_no_more_than_it_says(dtype: torch.dtype, share: float) -> None:
    linears = SHAPE.linears.values()
    ones = sum(4 * linear.out_features for linear in linears)
    each = unit_bytes(linears, dtype.itemsize)
    budget = 2 * (ones + int(share * each))
    units = units_within(budget, linears, dtype.itemsize)
    assert units == min(16, int(share))
    if units:
        stage = Stage(Bank(CPU), SHAPE.linears, dtype, units)
        assert stage.num_bytes == ones + units * each <= budget // 2
        assert {one.a_RI.shape[0] for one in stage.buffers.values()} == {units * UNIT}


class Products(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(name in func.name() for name in ("::mm", "::bmm"))
        return func(*args, **(kwargs or {}))


def test_linears_that_are_given_the_same_rows_are_multiplied_together_from_the_second_time_on(bank: Bank) -> None:
    ids = adapters(bank)
    stage, owners = Stage(bank, SHAPE.linears, torch.float32, 3), [ids[0], ids[3], None, ids[2]]
    counts: list[int] = []
    for _ in range(3):
        rows = staged(stage, owners)
        with Products() as products:
            for path, x in inputs(LAYER, len(owners)):
                rows.change(path, x)
        counts.append(products.count)
    assert counts == [14, 9, 9], "four of A; of B the keys' and values' are one, and the gate's and what it gates"
    check(bank, stage, owners, LAYER)
    check(bank, stage, owners, tuple((path,) for family in LAYER for path in reversed(family)))
