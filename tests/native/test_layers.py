"""A decoder layer of a size at which products are divided as in real models: wide blocks, a prompt in two parts,
adapters of several ranks. What a row gets must not depend, in a single bit, on how many come together.
"""

from dataclasses import dataclass

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from torch import Tensor

from native.build import Arithmetic
from native.kernels import Kernels
from native.tables import (
    FourBitWeight,
    Heads,
    LowRankPart,
    PartTable,
    StackTable,
    layer_table,
    linear_table,
    part_table,
    span_table,
    stack_table,
    term_table,
)
from tests.support.kernels import kernels

HIDDEN, MIDDLE, HEADS, KV_HEADS, WIDTH = 512, 832, 8, 2, 64
TOKENS = 530
SHAPES = {
    "q": (HEADS * WIDTH, HIDDEN),
    "k": (KV_HEADS * WIDTH, HIDDEN),
    "v": (KV_HEADS * WIDTH, HIDDEN),
    "o": (HIDDEN, HEADS * WIDTH),
    "gate": (MIDDLE, HIDDEN),
    "up": (MIDDLE, HIDDEN),
    "down": (HIDDEN, MIDDLE),
}
# Rows of an adapter: the first, and the one behind the last; rank; whether it has a gain. Some have few rows.
TERMS = (
    (0, 20, 17, True),
    (20, 21, 64, False),
    (21, 38, 16, False),
    (38, 43, 33, True),
    (43, 44, 3, False),
    (46, 460, 40, True),
    (460, 530, 5, False),
)


def bf16(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).bfloat16()


def weight(kind: str | None, outputs: int, inputs: int) -> Tensor | FourBitWeight:
    dense = bf16(outputs, inputs, scale=inputs**-0.5)
    if kind is None:
        return dense
    codes, state = quantize_4bit(dense, quant_type=kind, compress_statistics=True)
    nested, offset = state.state2, float(state.offset)
    return FourBitWeight(codes, state.code, state.absmax, nested.code, nested.absmax, offset, (outputs, inputs))


def adapter(rank: int, gained: bool) -> PartTable:
    parts = {
        number: LowRankPart(
            bf16(rank, inputs, scale=inputs**-0.5),
            bf16(rank, outputs, scale=0.2),
            0.7,
            torch.rand(outputs) + 0.5 if gained else None,
        )
        for number, (outputs, inputs) in enumerate(SHAPES.values())
    }
    return part_table(parts, len(SHAPES))


@dataclass(frozen=True)
class Rig:
    kernels: Kernels
    stack: StackTable
    adapters: list[PartTable]
    x: Tensor
    cos: Tensor
    sin: Tensor

    def run(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the sequence, with its keys and values before them in the cache."""
        first, count, context = (torch.tensor([number]) for number in (0, stop - start, stop))
        spans = span_table(torch.arange(start, stop), first, count, context, torch.arange(stop)[None])
        terms = [
            (max(begin, start) - start, min(end, stop) - start, table)
            for (begin, end, _, _), table in zip(TERMS, self.adapters, strict=True)
            if begin < stop and start < end
        ]
        table = term_table(terms, stop - start)
        x, cos, sin = (one[start:stop].contiguous() for one in (self.x, self.cos, self.sin))
        return self.kernels.decoder_layers(x, self.stack, spans, table, cos, sin)


def rig(kernels: Kernels, kind: str | None) -> Rig:
    linears = {
        name: linear_table(weight(kind, *shape), None, number) for number, (name, shape) in enumerate(SHAPES.items())
    }
    norms = {name: ((1 + torch.randn(HIDDEN) / 10).bfloat16(), 1e-5) for name in ("before_attention", "before_mlp")}
    cache = (torch.zeros(TOKENS, KV_HEADS, WIDTH).bfloat16(), torch.zeros(TOKENS, KV_HEADS, WIDTH).bfloat16())
    layer = layer_table(linears, norms, cache, Heads(HEADS, KV_HEADS, WIDTH, WIDTH**-0.5))
    return Rig(
        kernels,
        stack_table([layer]),
        [adapter(rank, gained) for _, _, rank, gained in TERMS],
        bf16(TOKENS, HIDDEN),
        bf16(TOKENS, WIDTH),
        bf16(TOKENS, WIDTH),
    )


@pytest.mark.parametrize("kind", [None, "nf4"])
@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_rows_get_the_same_bits_in_whatever_parts_they_come(arithmetic: Arithmetic, kind: str | None) -> None:
    torch.manual_seed(5)
    layer = rig(kernels(arithmetic), kind)
    together = layer.run(0, TOKENS)
    assert together.isfinite().all()
    for size in (16, 50, 300):
        parts = [layer.run(start, min(start + size, TOKENS)) for start in range(0, TOKENS, size)]
        differing = (torch.cat(parts) != together).any(1).nonzero().flatten().tolist()
        assert not differing, f"rows {differing} in parts of {size}"
