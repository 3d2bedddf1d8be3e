"""The LoRA product for a batch of many adapters, and which rows belong to whom.

Owns the arithmetic `y[t] += s * B (A x[t])` over segments (SGMV, arXiv 2310.18547) and its ways on torch's own
ops. Knows neither modules nor where adapters live.

Shape suffixes: T rows, I inputs, O outputs, R ranks (of all adapters together).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this many rows times ranks, multiplying every row by every rank costs more than one product per segment.
DENSE_LIMIT = 8_192
GROUPED_STRIDE = 8  # elements of two bytes


@dataclass(frozen=True, slots=True)
class LowRank:
    """One adapter at one linear: `a_RI`, `b_RO` (B transposed, so that ranks lie side by side), and its scaling."""

    a_RI: Tensor
    b_RO: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.a_RI.shape[0]


@dataclass(frozen=True, slots=True)
class Term:
    """Rows `[start, stop)` gain the product of adapter number `index` of the batch."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RankMask:
    """`[T, R]`: what each row's product with each rank is scaled by, and which ranks are outside the row's adapter."""

    scaling_TR: Tensor
    outside_TR: Tensor


@dataclass(slots=True)
class Terms:
    """All that a batch adds to its rows; at most one term covers a row."""

    num_rows: int
    terms: tuple[Term, ...]
    device: torch.device
    _masks: dict[tuple[tuple[int, float], ...], RankMask] = field(default_factory=dict)

    def rank_mask(self, parts: Sequence[LowRank | None]) -> RankMask:
        """Which rows have which ranks. Made once for all linears where the adapters have these ranks and scalings."""
        key = tuple((part.rank, part.scaling) if part else (0, 0.0) for part in parts)
        if key not in self._masks:
            starts = [0]
            for rank, _ in key:
                starts.append(starts[-1] + rank)
            scaling = torch.zeros(self.num_rows, starts[-1])
            outside = torch.ones(self.num_rows, starts[-1], dtype=torch.bool)
            for term in self.terms:
                block = slice(term.start, term.stop), slice(starts[term.index], starts[term.index + 1])
                scaling[block], outside[block] = key[term.index][1], False
            self._masks[key] = RankMask(scaling.to(self.device), outside.to(self.device))
        return self._masks[key]


def add_low_rank(y_TO: Tensor, x_TI: Tensor, parts: Sequence[LowRank | None], terms: Terms) -> None:
    """`y[t] += s_i * (x[t] A_i^T) B_i^T` in place, for every term (i, t) whose adapter has a part here.

    `parts` holds each adapter's tensors for this linear, None where it does not touch it. Products are computed in
    the adapters' dtype, which need not be x's, and added in y's.
    """
    present = [part for part in parts if part is not None]
    if not present:
        return
    if terms.num_rows * sum(part.rank for part in present) <= DENSE_LIMIT:
        _add_dense(y_TO, x_TI, parts, present, terms)
    elif y_TO.is_cuda and can_group(x_TI, y_TO, present[0].a_RI.dtype, torch.cuda.get_device_capability(y_TO.device)):
        add_grouped(y_TO, x_TI, parts, terms)
    else:
        _add_by_segment(y_TO, x_TI, parts, terms)


def _add_dense(
    y_TO: Tensor, x_TI: Tensor, parts: Sequence[LowRank | None], present: Sequence[LowRank], terms: Terms
) -> None:
    """Two products over all ranks at once; the ranks of other rows' adapters are masked, not multiplied by 0.

    0 * inf is NaN: a neighbour's overflow must not reach this row.
    """
    a_RI = torch.cat([part.a_RI for part in present]) if len(present) > 1 else present[0].a_RI
    b_RO = torch.cat([part.b_RO for part in present]) if len(present) > 1 else present[0].b_RO
    mask = terms.rank_mask(parts)
    h_TR = torch.mm(x_TI.to(a_RI.dtype), a_RI.t())
    h_TR.mul_(mask.scaling_TR).masked_fill_(mask.outside_TR, 0)
    y_TO += torch.mm(h_TR, b_RO)


def _add_by_segment(y_TO: Tensor, x_TI: Tensor, parts: Sequence[LowRank | None], terms: Terms) -> None:
    """Two products per term, over its rows alone."""
    for term in terms.terms:
        part = parts[term.index]
        if part is not None:
            rows = slice(term.start, term.stop)
            h = torch.mm(x_TI[rows].to(part.a_RI.dtype), part.a_RI.t()).mul_(part.scaling)
            y_TO[rows] += torch.mm(h, part.b_RO)


def can_group(x_TI: Tensor, y_TO: Tensor, dtype: torch.dtype, capability: tuple[int, int]) -> bool:
    """What `grouped_mm` asks for on a GPU: bfloat16, Ampere or newer, and rows of a multiple of 16 bytes."""
    aligned = x_TI.shape[1] % GROUPED_STRIDE == 0 and y_TO.shape[1] % GROUPED_STRIDE == 0
    return dtype == torch.bfloat16 and capability >= (8, 0) and aligned


def add_grouped(y_TO: Tensor, x_TI: Tensor, parts: Sequence[LowRank | None], terms: Terms) -> None:
    """Two grouped products over all terms, each term's rows a group (`torch.nn.functional.grouped_mm`).

    Ranks are padded with zeros to the largest present, in rows as `can_group` asks, for the length of this call only.
    """
    present = [(term, part) for term in terms.terms if (part := parts[term.index]) is not None]
    width = -(-max(part.rank for _, part in present) // GROUPED_STRIDE) * GROUPED_STRIDE
    a_GRI = torch.stack([F.pad(part.a_RI, (0, 0, 0, width - part.rank)) for _, part in present])
    b_GRO = torch.stack([F.pad(part.b_RO, (0, 0, 0, width - part.rank)) for _, part in present])
    rows = torch.cat([torch.arange(term.start, term.stop) for term, _ in present]).to(y_TO.device)
    counts = torch.tensor([term.stop - term.start for term, _ in present])
    scaling = torch.tensor([part.scaling for _, part in present]).repeat_interleave(counts)
    ends = counts.cumsum(0).to(device=y_TO.device, dtype=torch.int32)
    h_TR = F.grouped_mm(x_TI[rows].to(a_GRI.dtype), a_GRI.transpose(1, 2), offs=ends)
    h_TR = (h_TR * scaling[:, None].to(y_TO.device)).to(b_GRO.dtype)
    y_TO.index_add_(0, rows, F.grouped_mm(h_TR, b_GRO, offs=ends).to(y_TO.dtype))
