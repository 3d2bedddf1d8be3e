"""The LoRA product over a mixed batch, against a loop of one line: `y[t] += s * (x[t] A^T) B^T`."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adapters import op
from adapters.op import LowRank, Term, Terms, add_grouped, add_low_rank
from bench.workload import Popularity, assign

IN, OUT, T = 48, 40, 60
CPU = torch.device("cpu")
ADAPTERS = 9
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
Product = Callable[[Tensor, Tensor, Sequence[LowRank | None], Terms], None]


def by_segment(y: Tensor, x: Tensor, parts: Sequence[LowRank | None], terms: Terms) -> None:
    op._add_by_segment(y, x, parts, terms)


def dense(y: Tensor, x: Tensor, parts: Sequence[LowRank | None], terms: Terms) -> None:
    op._add_dense(y, x, parts, [part for part in parts if part is not None], terms)


def grouped(y: Tensor, x: Tensor, parts: Sequence[LowRank | None], terms: Terms) -> None:
    add_grouped(y, x, parts, terms)


def low_ranks(seed: int, dtype: torch.dtype = torch.float32, missing: bool = True) -> list[LowRank | None]:
    """Ranks 1 to 64; every fourth adapter has no part here."""
    torch.manual_seed(seed)
    ranks = [1, 2, 3, 8, 16, 5, 64, 32, 7][:ADAPTERS]
    return [
        None
        if missing and number % 4 == 3
        else LowRank(
            torch.randn(rank, IN, dtype=dtype) / 7, torch.randn(rank, OUT, dtype=dtype) / rank**0.5, 0.5 + number
        )
        for number, rank in enumerate(ranks)
    ]


def terms_of(owners: Sequence[int]) -> list[Term]:
    """One term for each run of rows with the same owner; -1 is the base."""
    terms, start = [], 0
    for stop in range(1, len(owners) + 1):
        if stop == len(owners) or owners[stop] != owners[start]:
            if owners[start] >= 0:
                terms.append(Term(owners[start], start, stop))
            start = stop
    return terms


def loop(y: Tensor, x: Tensor, parts: Sequence[LowRank | None], terms: Sequence[Term]) -> Tensor:
    """The definition, row by row, in float64."""
    y = y.double()
    for term in terms:
        part = parts[term.index]
        for t in range(term.start, term.stop):
            if part is not None:
                y[t] += part.scaling * (x[t].double() @ part.a_RI.double().T) @ part.b_RO.double()
    return y


def owners_of(popularity: Popularity, base_share: float = 0.3) -> list[int]:
    """Rows in batch order: each adapter's side by side, the base's first."""
    chance = random.Random(5)
    drawn = [-1 if chance.random() < base_share else owner for owner in assign(popularity, T, ADAPTERS, seed=3)]
    return sorted(drawn)


@pytest.mark.parametrize("popularity", Popularity)
@pytest.mark.parametrize("product", [add_low_rank, dense, by_segment])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_popularity_equals_the_loop(popularity: Popularity, product: Product, dtype: torch.dtype) -> None:
    parts = low_ranks(1, dtype)
    x, y = torch.randn(T, IN, dtype=dtype), torch.randn(T, OUT, dtype=dtype)
    terms = terms_of(owners_of(popularity))
    expected = loop(y, x, parts, terms)
    product(y, x, parts, Terms(T, tuple(terms), CPU))
    scale = float(expected.abs().max())
    assert float((y.double() - expected).abs().max()) <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("popularity", Popularity)
def test_grouped_products_equal_the_loop(popularity: Popularity) -> None:
    """The way that CUDA takes for long mixed prompts, here on what the CPU makes of the same call."""
    parts = low_ranks(3)
    x, y = torch.randn(T, IN), torch.randn(T, OUT)
    terms = terms_of(owners_of(popularity))
    expected = loop(y, x, parts, terms)
    if any(parts[term.index] is not None for term in terms):
        add_grouped(y, x, parts, Terms(T, tuple(terms), CPU))
    assert torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-4)


class AsOnAGpu(TorchDispatchMode):
    """Shows every grouped product to what torch checks for a GPU's, which it does for tensors without contents too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shown = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._grouped_mm.default:
            self.shown += 1
            func(*map(bare, args), **{name: bare(value) for name, value in kwargs.items()})
        return func(*args, **kwargs)


def bare(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def test_grouped_products_have_the_types_and_strides_a_gpu_asks_for() -> None:
    parts = low_ranks(3, torch.bfloat16)
    x, y = torch.randn(T, IN, dtype=torch.bfloat16), torch.zeros(T, OUT, dtype=torch.bfloat16)
    terms = terms_of(owners_of(Popularity.UNIFORM))
    expected = loop(y, x, parts, terms)
    with AsOnAGpu() as gpu:
        add_grouped(y, x, parts, Terms(T, tuple(terms), CPU))
    assert gpu.shown == 2
    assert float((y.double() - expected).abs().max()) <= 3e-2 * float(expected.abs().max())
    with AsOnAGpu(), pytest.raises(RuntimeError, match="16 bytes"):
        narrow = [LowRank(part.a_RI[:, :44].contiguous(), part.b_RO, 1.0) if part else None for part in parts]
        add_grouped(y, x[:, :44].contiguous(), narrow, Terms(T, tuple(terms), CPU))


@pytest.mark.parametrize(
    "width, dtype, capability, can",
    [
        (IN, torch.bfloat16, (9, 0), True), (44, torch.bfloat16, (9, 0), False), (IN, torch.float16, (9, 0), False),
        (IN, torch.bfloat16, (7, 5), False),
    ],
)  # fmt: skip
def test_a_gpu_is_given_grouped_products_it_can_do(
    width: int, dtype: torch.dtype, capability: tuple[int, int], can: bool
) -> None:
    assert op.can_group(torch.zeros(3, width), torch.zeros(3, OUT), dtype, capability) is can
    assert op.can_group(torch.zeros(3, OUT), torch.zeros(3, width), dtype, capability) is can


@pytest.mark.parametrize("product", [dense, by_segment])
def test_products_in_half_precision_stay_close(product: Product) -> None:
    parts = low_ranks(4, torch.bfloat16)
    x, y = torch.randn(T, IN, dtype=torch.bfloat16), torch.zeros(T, OUT, dtype=torch.bfloat16)
    terms = terms_of(owners_of(Popularity.UNIFORM))
    expected = loop(y, x, parts, terms)
    product(y, x, parts, Terms(T, tuple(terms), CPU))
    assert float((y.double() - expected).abs().max()) <= 3e-2 * float(expected.abs().max())


@pytest.mark.parametrize("product", [dense, by_segment])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_overflow_stays_in_its_own_rows(product: Product, bad: float) -> None:
    """The first adapter's A overflows on every row it is multiplied with, and one of its rows is broken."""
    parts = low_ranks(5, missing=False)
    assert parts[0] is not None
    parts[0].a_RI.fill_(3e38)
    owners = [0] * 10 + [1] * 20 + [4] * 20 + [-1] * 10
    x, y = torch.randn(T, IN), torch.randn(T, OUT)
    x[3] = bad
    terms = terms_of(owners)
    expected = loop(y, x, parts, terms)
    product(y, x, parts, Terms(T, tuple(terms), CPU))
    assert y[10:].isfinite().all() and torch.allclose(y[10:].double(), expected[10:], rtol=1e-5, atol=1e-4)
    assert not y[3].isfinite().any()


def test_rows_without_an_adapter_do_not_change_in_a_single_bit() -> None:
    parts = low_ranks(6)
    x, y = torch.randn(T, IN), torch.randn(T, OUT)
    before = y.clone()
    add_low_rank(y, x, parts, Terms(T, tuple(terms_of([-1] * 20 + [2] * 20 + [-1] * 20)), CPU))
    assert torch.equal(y[:20], before[:20]) and torch.equal(y[40:], before[40:])
    assert not torch.equal(y[20:40], before[20:40])


def test_no_part_anywhere_is_no_work() -> None:
    y = torch.randn(4, OUT)
    before = y.clone()
    add_low_rank(y, torch.randn(4, IN), [None, None], Terms(4, (Term(0, 0, 4),), CPU))
    assert torch.equal(y, before)


def test_long_batches_take_the_segments_and_say_the_same() -> None:
    parts = low_ranks(7, missing=False)
    rows = op.DENSE_LIMIT // sum(part.rank for part in parts if part) + 1
    owners = sorted(assign(Popularity.ZIPF, rows, ADAPTERS))
    x, y = torch.randn(rows, IN), torch.zeros(rows, OUT)
    terms = Terms(rows, tuple(terms_of(owners)), CPU)
    other = y.clone()
    add_low_rank(y, x, parts, terms)
    assert not terms._masks
    dense(other, x, parts, terms)
    assert terms._masks, "only the dense way asks for masks"
    assert torch.allclose(y, other, rtol=1e-4, atol=1e-4)


def test_masks_are_made_once_for_linears_alike() -> None:
    parts = low_ranks(8)
    terms = Terms(T, tuple(terms_of(owners_of(Popularity.UNIFORM))), CPU)
    assert terms.rank_mask(parts) is terms.rank_mask(low_ranks(9))
    assert terms.rank_mask(parts) is not terms.rank_mask(low_ranks(8, missing=False))
