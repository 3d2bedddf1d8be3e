"""Every compiled kernel against the plain formula in float32 or float64, over shapes that meet each of its branches."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import quantize_4bit
from torch import Tensor

from native.build import Arithmetic
from native.kernels import Kernels
from native.tables import FourBitWeight, LowRankPart, Move, part_table, span_table, term_table
from tests.support.kernels import kernels

ROUNDING = 2**-8
# None, one row, a tile, a tile and a rest, two readings of the weight, many; widths with and without a rest, and some
# that are multiplied a slice of inputs after the other.
ROWS = (0, 1, 3, 4, 5, 12, 70)
SHAPES = ((12, 64), (25, 40), (3, 33), (13, 1100), (48, 1600), (40, 2010))


def bf16(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).bfloat16()


def close(got: Tensor, want: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(got.float(), want.float(), rtol=2 * ROUNDING, atol=2 * ROUNDING * scale)


@pytest.fixture(params=list(Arithmetic))
def arithmetic(request: pytest.FixtureRequest) -> Arithmetic:
    """Every one, whichever is the fastest here."""
    one: Arithmetic = request.param
    return one


@pytest.fixture
def compiled(arithmetic: Arithmetic) -> Kernels:
    return kernels(arithmetic)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_the_sum_rounded_once(
    compiled: Kernels, rows: int, outputs: int, inputs: int, biased: bool
) -> None:
    x, weight, bias = bf16(rows, inputs), bf16(outputs, inputs), bf16(outputs) if biased else None
    want = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    close(compiled.linear(x, weight, bias), want)


@pytest.mark.parametrize("biased", [False, True])
def test_what_is_added_and_what_is_gained_is_rounded_with_the_product(compiled: Kernels, biased: bool) -> None:
    x, weight, bias = bf16(9, 64), bf16(30, 64), bf16(30) if biased else None
    plus, gain = torch.randn(9, 30) / 10, torch.rand(30) + 0.5
    want = x.float() @ weight.float().t() + plus
    want[2:7] *= gain
    close(compiled.linear(x, weight, bias, plus, [(slice(2, 7), gain)]), want if bias is None else want + bias.float())


def test_a_term_too_small_for_the_products_last_place_is_not_lost(compiled: Kernels) -> None:
    """Single elements round away; the mean over many does not, as it would if the product had been rounded first."""
    x, weight, small = bf16(64, 64), bf16(300, 64), 1e-3
    exact = F.linear(x.double(), weight.double())
    once = compiled.linear(x, weight, None, torch.full((64, 300), small)).double()
    twice = (compiled.linear(x, weight, None) + small).double()
    assert abs((once - exact).mean() - small) < small / 4 < abs((twice - exact).mean() - small)


def test_a_product_keeps_leading_dimensions_and_takes_strided_input(compiled: Kernels) -> None:
    x, weight = bf16(2, 40, 3).transpose(1, 2), bf16(5, 40)
    got = compiled.linear(x, weight, None)
    assert got.shape == (2, 3, 5)
    close(got, x.float() @ weight.float().t())


@pytest.mark.parametrize("kind", [None, "nf4"])
@pytest.mark.parametrize("inputs", [576, 2010, 4864])
def test_a_row_does_not_depend_on_its_neighbours(compiled: Kernels, kind: str | None, inputs: int) -> None:
    """However many they are: that decides how a weight is read, and whether in parts."""
    x, weight = bf16(150, inputs), bf16(50, inputs) if kind is None else four_bits(kind, 50, inputs)
    together = compiled.linear(x, weight, None)
    for rows in (1, 4, 8, 12, 16, 20, 37, 130):
        for some in range(0, max(37, rows), rows):
            assert torch.equal(compiled.linear(x[some : some + rows], weight, None), together[some : some + rows])


def four_bits(kind: str, outputs: int, inputs: int) -> FourBitWeight:
    codes, state = quantize_4bit(bf16(outputs, inputs), quant_type=kind, compress_statistics=True)
    nested = state.state2
    return FourBitWeight(
        codes, state.code, state.absmax, nested.code, nested.absmax, float(state.offset), (outputs, inputs)
    )


def dequantized(weight: FourBitWeight) -> Tensor:
    """By the formula: bitsandbytes' own is wrong on CPUs with AVX512 where rows begin within a block."""
    both = weight.codes.flatten().int()
    values = weight.values[torch.stack([both >> 4, both & 15], dim=1).flatten()]
    scales = weight.scale_values[weight.scale_codes.int()]
    nested = weight.scale_scales.repeat_interleave(256)[: len(scales)]
    scales = scales * nested + weight.offset
    outputs, inputs = weight.shape
    return (values[: outputs * inputs] * scales.repeat_interleave(64)[: outputs * inputs]).view(outputs, inputs)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outputs", "inputs"), [(12, 64), (25, 96), (33, 46), (5, 2048), (40, 640)])
def test_a_4_bit_product_is_that_of_the_dequantized_weight(
    compiled: Kernels, kind: str, rows: int, outputs: int, inputs: int
) -> None:
    weight = four_bits(kind, outputs, inputs)
    x, bias = bf16(rows, inputs), bf16(outputs)
    want = x.float() @ dequantized(weight).t() + bias.float()
    close(compiled.linear(x, weight, bias), want, scale=inputs**0.5)


class Batch:
    """Rows of three adapters of different ranks and of none; the second does not touch layer 1."""

    def __init__(self, inputs: int, outputs: int, rows: int) -> None:
        self.parts = [
            LowRankPart(bf16(rank, inputs, scale=0.2), bf16(rank, outputs, scale=0.2), scaling)
            for rank, scaling in ((16, 2.0), (5, 0.5), (64, 1.0))
        ]
        touched = ((0, 1), (0,), (0, 1))
        self.touches = [set(layers) for layers in touched]
        tables = [
            part_table({layer: part for layer in layers}, 2) for part, layers in zip(self.parts, touched, strict=True)
        ]
        self.terms = [(0, 1, 0), (1, 4, 1), (5, 6, 2), (6, rows - 1, 0)]
        self.table = term_table([(start, stop, tables[one]) for start, stop, one in self.terms], rows)
        self.x, self.rows, self.outputs = bf16(rows, inputs), rows, outputs

    def want(self, layer: int, rounded: bool) -> Tensor:
        """`rounded`: A x is, to bf16, as in tiles."""
        want = torch.zeros(self.rows, self.outputs)
        for start, stop, one in self.terms:
            part = self.parts[one]
            if layer in self.touches[one]:
                h = self.x[start:stop].float() @ part.a_RI.float().t() * part.scaling
                want[start:stop] = (h.bfloat16().float() if rounded else h) @ part.b_RO.float()
        return want

    def got(self, compiled: Kernels, layer: int) -> Tensor:
        return compiled.low_rank(self.x, self.table, layer, self.outputs)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (40, 300), (33, 7)])
@pytest.mark.parametrize("rows", [8, 90])
def test_each_row_gains_its_own_adapter(
    compiled: Kernels, arithmetic: Arithmetic, layer: int, inputs: int, outputs: int, rows: int
) -> None:
    batch = Batch(inputs, outputs, rows)
    got = batch.got(compiled, layer)
    want = batch.want(layer, rounded=arithmetic is Arithmetic.TILES)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not got[[4, rows - 1]].any(), "no adapter covers these"


def test_a_neighbours_overflow_stays_its_own(compiled: Kernels) -> None:
    batch = Batch(64, 48, 20)
    batch.x[0] = float("inf")
    got = batch.got(compiled, 0)
    assert not got[0].isfinite().any() and got[1:].isfinite().all()


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(9, 3, 64), (4, 4, 16), (32, 1, 128)])
@pytest.mark.parametrize("window", [None, 1, 37])
def test_attention_over_scattered_slots(
    compiled: Kernels, heads: int, kv_heads: int, width: int, window: int | None
) -> None:
    counts, contexts = [1, 1, 40, 77], [5, 200, 40, 300]
    starts = [0, 1, 2, 42]
    tokens, longest = sum(counts), 304
    slots = torch.randperm(len(counts) * longest).view(len(counts), longest)
    keys, values = (torch.full((slots.numel(), kv_heads, width), float("nan")).bfloat16() for _ in range(2))
    for row, context in zip(slots, contexts, strict=True):
        keys[row[:context]], values[row[:context]] = bf16(context, kv_heads, width), bf16(context, kv_heads, width)
    query, key = bf16(1, tokens, heads, width).transpose(1, 2)[0], bf16(1, tokens, kv_heads, width).transpose(1, 2)[0]
    value = bf16(kv_heads, tokens, width)
    written = torch.cat([row[c - n : c] for row, n, c in zip(slots, counts, contexts, strict=True)])
    spans = span_table(written, torch.tensor(starts), torch.tensor(counts), torch.tensor(contexts), slots)

    got = compiled.attend(query, key, value, (keys, values), spans, width**-0.5, window)

    assert torch.equal(keys[written], key.transpose(0, 1)) and torch.equal(values[written], value.transpose(0, 1))
    for row, start, count, context in zip(slots, starts, counts, contexts, strict=True):
        queries = torch.arange(context - count, context)[:, None]
        seen = torch.arange(context) <= queries
        if window is not None:
            seen &= torch.arange(context) > queries - window
        k, v = (
            cache[row[:context]].float().transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
            for cache in (keys, values)
        )
        want = F.scaled_dot_product_attention(query[:, start : start + count].float(), k, v, attn_mask=seen)
        close(got[start : start + count].transpose(0, 1), want)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(9, 3, 64), (14, 2, 96), (4, 4, 16)])
@pytest.mark.parametrize("window", [None, 37])
def test_a_row_attends_alone_as_among_others(
    compiled: Kernels, heads: int, kv_heads: int, width: int, window: int | None
) -> None:
    """Whatever share of a sequence's rows come together: that decides how many lines have their softmax at once."""
    tokens = 150
    query, key, value = bf16(heads, tokens, width), bf16(kv_heads, tokens, width), bf16(kv_heads, tokens, width)
    slots = torch.randperm(tokens + 10)[:tokens]
    keys, values = (torch.zeros(tokens + 10, kv_heads, width).bfloat16() for _ in range(2))

    def attended(start: int, stop: int) -> Tensor:
        first, count, context = (torch.tensor([number]) for number in (0, stop - start, stop))
        spans = span_table(slots[start:stop], first, count, context, slots[None, :stop].contiguous())
        q, k, v = (one[:, start:stop] for one in (query, key, value))
        return compiled.attend(q, k, v, (keys, values), spans, width**-0.5, window)

    together = attended(0, tokens)
    for size in (1, 2, 7, 40):
        parts = [attended(start, min(start + size, tokens)) for start in range(0, tokens, size)]
        assert torch.equal(torch.cat(parts), together)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(9, 3, 64), (14, 2, 96), (4, 4, 32), (4, 4, 16)])
def test_a_decoding_row_attends_alone_as_among_many(compiled: Kernels, heads: int, kv_heads: int, width: int) -> None:
    """Where there are enough of them, a thread takes all heads of a row; alone, a head."""
    contexts = [1 + 37 * i % 200 for i in range(2 * torch.get_num_threads() + 3)]
    rows, longest = len(contexts), max(contexts)
    slots = torch.randperm(rows * longest).view(rows, longest)
    cache = bf16(rows * longest, kv_heads, width), bf16(rows * longest, kv_heads, width)
    query, key, value = bf16(heads, rows, width), bf16(kv_heads, rows, width), bf16(kv_heads, rows, width)

    def attended(first: int, stop: int) -> Tensor:
        own = torch.tensor(contexts[first:stop])
        written = slots[torch.arange(first, stop), own - 1].contiguous()
        counts = torch.ones(stop - first, dtype=torch.int64)
        spans = span_table(written, torch.arange(stop - first), counts, own, slots[first:stop].contiguous())
        q, k, v = (one[:, first:stop] for one in (query, key, value))
        return compiled.attend(q, k, v, cache, spans, width**-0.5, None)

    together = attended(0, rows)
    assert torch.equal(torch.cat([attended(row, row + 1) for row in range(rows)]), together)


@pytest.mark.parametrize("width", [64, 70])
def test_a_norm_rounds_where_transformers_does(compiled: Kernels, width: int) -> None:
    x, weight = bf16(5, width) * torch.tensor([[1e-3], [1.0], [30.0], [0.0], [1e4]]).bfloat16(), bf16(width)
    wide = x.float()
    want = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).bfloat16()
    torch.testing.assert_close(compiled.rms_norm(x, weight, 1e-5), want, rtol=2**-7, atol=0)


@pytest.mark.parametrize("count", [7, 40, 20003])
def test_silu_rounds_where_torch_does(compiled: Kernels, count: int) -> None:
    gate, up = bf16(count, scale=20.0), bf16(count)
    gate[:4] = torch.tensor([float("inf"), float("-inf"), float("nan"), -200.0])
    want = F.silu(gate) * up
    got = compiled.silu_product_(gate, up)
    assert got is gate
    torch.testing.assert_close(got, want, rtol=2**-7, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize(("heads", "width"), [(9, 64), (2, 20)])
def test_a_rotation_is_transformers_own(compiled: Kernels, tokens: int, heads: int, width: int) -> None:
    x, cos, sin = bf16(tokens, heads, width), bf16(tokens, width), bf16(tokens, width)
    half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], dim=-1)
    want = x * cos[:, None] + half * sin[:, None]
    assert torch.equal(compiled.rotate_(x, cos, sin), want)


def test_what_it_does_not_take() -> None:
    assert not Kernels.takes(torch.zeros(2, dtype=torch.float16))
    assert not Kernels.can_attend(bf16(4, 1, 40), bf16(2, 1, 40), bf16(2, 1, 40))
    assert not Kernels.can_attend(bf16(64, 1, 16), bf16(1, 1, 16), bf16(1, 1, 16))
    assert Kernels.can_attend(bf16(4, 1, 48), bf16(2, 1, 48), bf16(2, 1, 48))


def test_a_thread_that_works_alone_makes_no_others(compiled: Kernels) -> None:
    """torch asks the same OpenMP, so its operators are bound too; other threads are not."""
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=compiled.work_alone) as reader:
        assert reader.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted where Linux lists them")
def test_a_pool_that_is_given_back_is_gone_and_comes_again(compiled: Kernels) -> None:
    if torch.get_num_threads() < 2:
        pytest.skip("one thread has no pool")
    x, weight = bf16(5, 64), bf16(200, 64)

    def counts() -> tuple[Tensor, int, int, Tensor]:
        first, many = compiled.linear(x, weight, None), len(os.listdir("/proc/self/task"))
        compiled.release_threads()
        deadline = time.monotonic() + 5
        while len(os.listdir("/proc/self/task")) >= many and time.monotonic() < deadline:
            time.sleep(0.01)
        return first, many, len(os.listdir("/proc/self/task")), compiled.linear(x, weight, None)

    with ThreadPoolExecutor(1) as loader:
        first, many, few, again = loader.submit(counts).result()
    assert few < many
    assert torch.equal(first, again)


STORED = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 40), (33, 7), (64, 16), (70, 35), (31, 65)])
@pytest.mark.parametrize("transposed", [False, True])
def test_tensors_are_packed_as_torch_rounds_them(
    compiled: Kernels, stored: torch.dtype, rows: int, columns: int, transposed: bool
) -> None:
    """Three of them, five numbers apart, behind two that others have written."""
    size = rows * columns
    file = torch.randn(3 + 3 * (size + 5)).to(stored)
    packed = torch.full((2 + 3 * size + 2,), 9.0).bfloat16()
    largest = compiled.pack(file, [Move(3, size + 5, 2, 3, rows, columns, transposed)], packed)
    tensors = file[3:].view(3, -1)[:, :size].view(3, rows, columns).bfloat16()
    want = tensors.transpose(1, 2) if transposed else tensors
    assert torch.equal(packed[2:-2], want.flatten()) and packed[:2].tolist() == packed[-2:].tolist() == [9, 9]
    assert largest == tensors.abs().max()


@pytest.mark.parametrize("stored", STORED)
def test_every_half_and_every_upper_half_of_a_float_is_packed(compiled: Kernels, stored: torch.dtype) -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32)
    file = {
        torch.float32: (bits << 16 | 0x8000).view(torch.float32),  # each is a tie
        torch.float16: bits.to(torch.uint16).view(torch.float16),
        torch.bfloat16: bits.to(torch.uint16).view(torch.bfloat16),
    }[stored]
    numbers = file[~file.isnan()]
    packed = torch.empty(len(numbers), dtype=torch.bfloat16)
    assert compiled.pack(numbers, [Move(0, 0, 0, 1, 1, len(numbers), False)], packed) == float("inf")
    assert torch.equal(packed.view(torch.int16), numbers.bfloat16().view(torch.int16))


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("which", [float("inf"), float("-inf"), float("nan"), -float("nan")])
def test_the_largest_magnitude_tells_what_is_not_finite(compiled: Kernels, stored: torch.dtype, which: float) -> None:
    packed = torch.empty(20, dtype=torch.bfloat16)
    for place in range(20):
        file = torch.ones(20, dtype=stored)
        moves = [Move(0, 10, 0, 2, 2, 5, False)]
        assert compiled.pack(file, moves, packed) == 1
        file[place] = which
        assert compiled.pack(file, moves, packed) == float("inf")
    assert compiled.pack(file, [], packed) == 0
