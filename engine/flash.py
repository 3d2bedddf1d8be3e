"""FlashAttention over the block table, called as this torch and this GPU take it.

Owns the one call of torch's `varlen_attn` and the trial that finds out how it wants to be called. Knows blocks and
rows, neither models nor sequences.

Shape suffixes: T packed tokens, N sequences, H query heads, K key/value heads, D head width, B blocks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256  # tokens in a block, as FlashAttention 2 over a block table asks
WIDEST_HEAD = 256
DTYPES = torch.float16, torch.bfloat16
CLOSE = 2e-2  # of the largest value: half precision, summed in another order


@dataclass(frozen=True, slots=True)
class Rows:
    """Which packed queries look at which positions: those of sequence n at the last of its `contexts_N`."""

    starts_N: Tensor
    contexts_N: Tensor
    block_table_NB: Tensor
    longest_query: int
    longest_context: int


@dataclass(frozen=True, slots=True)
class Flash:
    """`attend` is torch's `varlen_attn`. Versions differ in whether they want `cu_seq_k` beside a block table, and in
    whether they take `num_splits`, without which a row's sums may be split as its batch happens to be."""

    attend: Callable[..., object]
    give_cu_seq_k: bool = False
    one_split: bool = True

    def takes(self, q_THD: Tensor, block_size: int) -> bool:
        """Heads it knows and blocks it can read; smaller blocks are gathered as on a CPU."""
        width = q_THD.shape[-1]
        sized = width <= WIDEST_HEAD and width % 8 == 0 and block_size % BLOCK == 0
        return sized and q_THD.dtype in DTYPES

    def __call__(
        self, q_THD: Tensor, blocks: tuple[Tensor, Tensor], rows: Rows, scaling: float, window: int | None
    ) -> Tensor:
        """`[T, H, D]`: softmax over what each query may see of the paged keys and values `[blocks, size, K, D]`."""
        keys, values = blocks
        out = self.attend(
            q_THD.contiguous(),
            keys,
            values,
            cu_seq_q=rows.starts_N,
            cu_seq_k=rows.starts_N if self.give_cu_seq_k else None,  # not read: the table and the contexts say it all
            max_q=rows.longest_query,
            max_k=rows.longest_context,
            scale=scaling,
            window_size=_window(rows.longest_query, window),
            enable_gqa=q_THD.shape[1] != keys.shape[2],
            seqused_k=rows.contexts_N,
            block_table=rows.block_table_NB,
            **({"num_splits": 1} if self.one_split else {}),
        )
        assert isinstance(out, Tensor)
        return out


def find(device: torch.device, dtype: torch.dtype, attend: Callable[..., object] | None = None) -> Flash | None:
    """The first way of calling `attend`, by default torch's, that gives what a plain softmax gives; None if none does.

    Found by trying, on a few rows, because it depends on torch's version, on its build and on the GPU.
    """
    if dtype not in DTYPES:
        return None
    if attend is None:
        from torch.nn.attention.varlen import varlen_attn  # importing it costs time, and CPUs have no use for it

        attend = varlen_attn
    ways = (Flash(attend, given, split) for split in (True, False) for given in (False, True))
    return next((way for way in ways if _is_right(way, device, dtype)), None)


def _window(longest_query: int, window: int | None) -> tuple[int, int]:
    """A single query is its sequence's last position and sees all of it: saying so lets query heads that share a key
    head read it once."""
    if window is not None:
        return window - 1, 0
    return (-1, -1) if longest_query == 1 else (-1, 0)


def _is_right(way: Flash, device: torch.device, dtype: torch.dtype) -> bool:
    for counts in ((1, 1, 1), (3, 1, 2)):
        for window in (None, 5):
            q, blocks, rows = _example(counts, device, dtype)
            try:
                got = way(q, blocks, rows, 0.25, window).float()
            except (RuntimeError, ValueError, TypeError):
                return False
            want = torch.stack(list(_plain(q, blocks, rows, 0.25, window)))
            if not float((got - want).abs().max()) <= CLOSE * float(want.abs().max()):
                return False
    return True


def _example(
    counts: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, Tensor], Rows]:
    """Sequences of one and of four blocks, which lie apart.

    Long enough for a kernel to split a context among processors, which some versions then put together wrongly.
    """
    chance = torch.Generator().manual_seed(len(set(counts)))
    shape, contexts = (7, BLOCK, 2, 64), (3 * BLOCK + 9, 7, BLOCK)
    q, keys, values = (torch.randn(size, generator=chance) for size in ((sum(counts), 4, 64), shape, shape))
    starts = torch.tensor([0, *counts]).cumsum(0)
    table = torch.tensor([[3, 1, 6, 2], [0] * 4, [4, 0, 0, 0]])
    starts, lengths, table = (values.int().to(device) for values in (starts, torch.tensor(contexts), table))
    rows = Rows(starts, lengths, table, max(counts), max(contexts))
    return q.to(device, dtype), (keys.to(device, dtype), values.to(device, dtype)), rows


def _plain(
    q_THD: Tensor, blocks: tuple[Tensor, Tensor], rows: Rows, scaling: float, window: int | None
) -> Iterator[Tensor]:
    """The definition, query by query, in float32."""
    bounds, contexts = rows.starts_N.tolist(), rows.contexts_N.tolist()
    groups = q_THD.shape[1] // blocks[0].shape[2]
    for number, context in enumerate(contexts):
        k_LHD, v_LHD = (
            part[rows.block_table_NB[number].long()].flatten(0, 1)[:context].float().repeat_interleave(groups, 1)
            for part in blocks
        )
        count = bounds[number + 1] - bounds[number]
        for at in range(count):
            stop = context - count + at + 1
            seen = slice(0 if window is None else max(0, stop - window), stop)
            scores = torch.einsum("hd,lhd->hl", q_THD[bounds[number] + at].float(), k_LHD[seen]) * scaling
            yield torch.einsum("hl,lhd->hd", scores.softmax(-1), v_LHD[seen])
