"""torch's `varlen_attn` over a block table, written down plainly, with the moods its versions have.

Refuses what FlashAttention's own checks refuse, so that a call that passes here has the types and shapes of one that
passes there.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class PlainVarlen:
    """`wants_cu_seq_k`: None does not care; True and False insist. `knows_splits`: whether `num_splits` may be given.

    `factor` spoils what comes out, `calls` counts, `longest` are the largest query and context counts it was told.
    """

    wants_cu_seq_k: bool | None = None
    knows_splits: bool = True
    factor: float = 1.0
    calls: int = 0
    longest: set[tuple[int, int]] = field(default_factory=set)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        *,
        return_aux: object = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
        seqused_k: Tensor | None = None,
        block_table: Tensor | None = None,
        num_splits: int | None = None,
    ) -> Tensor:
        self.calls += 1
        self.longest.add((max_q, max_k))
        assert seqused_k is not None and block_table is not None and scale is not None
        if self.wants_cu_seq_k is not None and self.wants_cu_seq_k != (cu_seq_k is not None):
            raise RuntimeError("cu_seq_k")
        if num_splits is not None and not self.knows_splits:
            raise RuntimeError("num_splits requires FA3")
        check(query, key, cu_seq_q, seqused_k, block_table, max_q, max_k)
        assert enable_gqa or query.shape[1] == key.shape[2]
        bounds, out = cu_seq_q.tolist(), torch.empty_like(query)
        for number, context in enumerate(seqused_k.tolist()):
            rows = slice(bounds[number], bounds[number + 1])
            blocks = block_table[number, : -(-context // key.shape[1])].long()
            k, v = (part[blocks].flatten(0, 1)[:context] for part in (key, value))
            out[rows] = one_sequence(query[rows], k, v, scale, window_size)
        return out * self.factor


def check(query: Tensor, key: Tensor, starts: Tensor, contexts: Tensor, table: Tensor, max_q: int, max_k: int) -> None:
    """What FlashAttention 2 checks of a paged call, and what it takes on trust."""
    count = starts.numel() - 1
    assert all(tensor.dtype == torch.int32 for tensor in (starts, contexts, table))
    assert starts.is_contiguous() and contexts.is_contiguous() and contexts.shape == (count,)
    assert table.shape[0] == count and table.stride(-1) == 1
    assert key.shape[1] % 256 == 0 and query.shape[2] % 8 == 0 and query.stride(-1) == key.stride(-1) == 1
    assert int(contexts.max()) <= max_k and int(starts.diff().max()) <= max_q and int(starts[-1]) == query.shape[0]


def one_sequence(q_QHD: Tensor, k_LKD: Tensor, v_LKD: Tensor, scale: float, window: tuple[int, int]) -> Tensor:
    """Queries are the last positions; `window` is how many positions before and after itself one sees, -1 all."""
    groups = q_QHD.shape[1] // k_LKD.shape[1]
    k_LHD, v_LHD = (part.float().repeat_interleave(groups, 1) for part in (k_LKD, v_LKD))
    positions = torch.arange(k_LHD.shape[0])
    queries = positions[len(positions) - len(q_QHD) :, None]
    seen = torch.ones(len(queries), len(positions), dtype=torch.bool)
    if window[0] >= 0:
        seen &= positions >= queries - window[0]
    if window[1] >= 0:
        seen &= positions <= queries + window[1]
    scores = torch.einsum("qhd,lhd->hql", q_QHD.float(), k_LHD) * scale
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hql,lhd->qhd", weights, v_LHD).to(q_QHD.dtype)
