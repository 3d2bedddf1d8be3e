"""One linear, many adapters: each row comes out as if its adapter were alone, whatever is merged."""

import pytest
import torch
from torch import Tensor, nn

from adapters.bank import Bank, Loaded, Part
from adapters.layer import ActiveGrafts, GraftedLinear, Segment, Selection, Selections, graft
from adapters.manifest import AdapterId, Graft, Manifest
from adapters.merge import fold
from adapters.op import LowRank

IN, OUT = 24, 20
CPU = torch.device("cpu")
LORA, DORA, OTHER, ELSEWHERE = (AdapterId(name) for name in ("lora", "dora", "other dora", "elsewhere"))


def part(rank: int, scaling: float, gain: bool) -> Part:
    low = LowRank(torch.randn(rank, IN) / 5, torch.randn(rank, OUT) / 2, scaling)
    return Part(low, torch.rand(OUT) + 0.5 if gain else None)


def manifest(id: AdapterId, path: str, rank: int) -> Manifest:
    return Manifest(id, "lora", rank, (path,), (Graft(path, IN, OUT, rank, 1.0),), "float32", None)


@pytest.fixture
def bank() -> Bank:
    torch.manual_seed(11)
    filled = Bank(CPU)
    for id, one in ((LORA, part(4, 2.0, False)), (DORA, part(8, 0.7, True)), (OTHER, part(1, 1.3, True))):
        filled.place(Loaded(manifest(id, "linear", one.low.rank), {"linear": one}))
    filled.place(Loaded(manifest(ELSEWHERE, "not here", 2), {"not here": part(2, 1.0, False)}))
    return filled


def alone(linear: nn.Linear, one: Part | None, x: Tensor) -> Tensor:
    """`g * (W x + s B A x) + bias` by the definition, in float64."""
    y = x.double() @ linear.weight.double().T
    if one is not None:
        y = y + one.low.scaling * (x.double() @ one.low.a_RI.double().T) @ one.low.b_RO.double()
        y = y if one.gain is None else y * one.gain.double()
    bias: Tensor | None = linear.bias
    return y if bias is None else y + bias.double()


SEGMENTS = [
    Segment(None, 0, 3), Segment(LORA, 3, 7), Segment(DORA, 7, 8), Segment(ELSEWHERE, 8, 10), Segment(OTHER, 10, 15),
    Segment(LORA, 15, 16), Segment(None, 16, 17),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("merged", [None, LORA, DORA, OTHER, ELSEWHERE])
def test_each_row_is_as_if_alone(bank: Bank, bias: bool, merged: AdapterId | None) -> None:
    linear = nn.Linear(IN, OUT, bias=bias)
    active = ActiveGrafts()
    wrapped = GraftedLinear("linear", linear, bank, active)
    if merged is not None and (one := bank.part(merged, "linear")) is not None:
        folded = nn.Linear(IN, OUT, bias=bias)
        folded.weight.copy_(fold(linear.weight, one))
        if bias:
            folded.bias.copy_(linear.bias)
        wrapped.merged = folded
    active.tokens = Selection.of(SEGMENTS, bank, merged)
    x = torch.randn(1, 17, IN)
    y = wrapped(x)
    assert y.shape == (1, 17, OUT)
    for segment in SEGMENTS:
        rows = slice(segment.start, segment.stop)
        one = None if segment.adapter is None else bank.part(segment.adapter, "linear")
        assert torch.allclose(y[0, rows].double(), alone(linear, one, x[0, rows]), atol=1e-4, rtol=1e-5), segment
        if segment.adapter is None:
            assert torch.allclose(y[0, rows], linear(x[0, rows]), atol=1e-6), "a base row never meets a merged weight"


@torch.no_grad()
def test_in_half_precision_dora_stays_close(bank: Bank) -> None:
    linear = nn.Linear(IN, OUT).bfloat16()
    active = ActiveGrafts()
    active.tokens = Selection.of(SEGMENTS, bank)
    x = torch.randn(17, IN).bfloat16()
    y = GraftedLinear("linear", linear, bank, active)(x)
    for segment in SEGMENTS:
        rows = slice(segment.start, segment.stop)
        one = None if segment.adapter is None else bank.part(segment.adapter, "linear")
        expected = alone(linear, one, x[rows])
        assert float((y[rows].double() - expected).abs().max()) <= 3e-2 * float(expected.abs().max())


@torch.no_grad()
def test_without_a_selection_it_is_the_linear_itself(bank: Bank) -> None:
    linear = nn.Linear(IN, OUT)
    active = ActiveGrafts()
    wrapped = GraftedLinear("linear", linear, bank, active)
    x = torch.randn(5, IN)
    assert torch.equal(wrapped(x), linear(x))
    active.tokens = Selection.of([Segment(None, 0, 5)], bank)
    assert active.tokens.adapters == () and torch.equal(wrapped(x), linear(x))
    assert wrapped.weight is linear.weight and wrapped.bias is linear.bias


@torch.no_grad()
def test_the_head_follows_its_own_rows(bank: Bank) -> None:
    linear = nn.Linear(IN, OUT)
    active = ActiveGrafts()
    head = GraftedLinear("linear", linear, bank, active)
    head.serve_as_head()
    active.tokens = Selection.of([Segment(None, 0, 9)], bank)
    active.head = Selection.of([Segment(LORA, 0, 1), Segment(None, 1, 2)], bank)
    x = torch.randn(2, IN)
    y = head(x)
    assert torch.allclose(y[0].double(), alone(linear, bank.part(LORA, "linear"), x[0]), atol=1e-5)
    assert torch.equal(y[1], linear(x)[1])


def test_a_layer_that_is_given_other_rows_than_the_batch_says_so(bank: Bank) -> None:
    active = ActiveGrafts()
    active.tokens = Selection.of([Segment(LORA, 0, 3)], bank)
    wrapped = GraftedLinear("linear", nn.Linear(IN, OUT).requires_grad_(False), bank, active)
    with pytest.raises(RuntimeError, match="linear was given 2 rows in a batch of 3"):
        wrapped(torch.randn(2, IN))


def test_a_selection_numbers_adapters_and_sets_the_merged_ones_rows_apart(bank: Bank) -> None:
    selection = Selection.of(SEGMENTS, bank, merged=LORA)
    assert selection.adapters == (DORA, ELSEWHERE, OTHER)
    assert [rows for own, rows in selection.pieces if own] == [slice(3, 7), slice(15, 16)]
    assert [rows.start for _, rows in selection.pieces] == [segment.start for segment in SEGMENTS]
    assert not selection.all_merged
    alone = Selection.of([Segment(LORA, 0, 4)], bank, merged=LORA)
    assert alone.adapters == () and alone.all_merged
    assert Selection.of([Segment(OTHER, 0, 4)], bank, merged=LORA).pieces == ()
    assert Selection.of([], bank).adapters == ()


def test_grafting_wraps_in_place(bank: Bank) -> None:
    model = nn.Sequential(nn.Linear(IN, OUT), nn.ReLU(), nn.Linear(OUT, 3))
    first, last = model[0], model[2]
    grafted = graft(model, ["0", "2"], bank, ActiveGrafts(), head="2")
    assert model[0] is grafted["0"] and model[2] is grafted["2"]
    assert grafted["0"].base is first and grafted["2"].base is last


def test_a_batch_that_stays_the_same_is_selected_once_until_the_bank_changes(bank: Bank) -> None:
    selections, head = Selections(bank), [Segment(LORA, 0, 1)]
    first = selections.of(SEGMENTS, None)
    assert selections.of(head, None) is not first and selections.of(SEGMENTS, None) is first
    assert selections.of(SEGMENTS, LORA) is not first, "another adapter is merged"
    touch = selections.of(SEGMENTS, None).touch("linear", bank)
    bank.drop(LORA)
    new = part(4, 2.0, False)
    bank.place(Loaded(manifest(LORA, "linear", 4), {"linear": new}))
    again = selections.of(SEGMENTS, None).touch("linear", bank)
    assert touch is not None and touch.lows[0] is not None and again is not None and again.lows[0] is not None
    assert again.lows[0].a_RI is new.low.a_RI is not touch.lows[0].a_RI
