"""A step's tokens, packed: which row is whose, and where its keys and values live.

Owns the index tensors of one step. Knows plans and block numbers, not models.

Shape suffixes: T packed tokens, N sequences, L positions of context.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.flash import Flash, Rows
from engine.kv_cache import KVCache
from engine.scheduler import Chunk
from native.kernels import Kernels
from native.tables import SpanTable, span_table


@dataclass(frozen=True, slots=True)
class Span:
    """The rows `[start, stop)` of one sequence, whose last row is position `context - 1`."""

    start: int
    stop: int
    context: int

    @property
    def count(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class PagedBatch:
    """What attention needs to know of a step.

    The first `num_decoding` spans have one row each. `slots_T` says where each token's keys and values are written,
    `slots_NL` where each sequence's context is read, padded with its first slot beyond its length. `table` tells the
    compiled kernels the same, where there are some, and `rows` tells `flash`. Spans of a `recorded` batch are as long
    as any may become: what its sequences really have, only `contexts_N` says.
    """

    cache: KVCache
    spans: tuple[Span, ...]
    num_decoding: int
    slots_T: Tensor
    slots_NL: Tensor
    block_table_NB: Tensor
    contexts_N: Tensor
    starts_N: Tensor
    kernels: Kernels | None = None
    table: SpanTable | None = None
    flash: Flash | None = None
    recorded: bool = False
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> Rows:
        """The batch as FlashAttention is told of it."""
        longest_query, longest = max(span.count for span in self.spans), max(span.context for span in self.spans)
        return Rows(self.starts_N, self.contexts_N, self.block_table_NB, longest_query, longest)

    def decode_mask(self, window: int | None) -> Tensor:
        """`[num_decoding, L]`, true where a decoding sequence's one query looks: its context, or the window's end."""
        if window not in self._masks:
            contexts = self.contexts_N[: self.num_decoding, None]
            positions_L = torch.arange(self.longest_decoding, device=contexts.device)
            mask = positions_L < contexts
            if window is not None:
                mask &= positions_L >= contexts - window
            self._masks[window] = mask
        return self._masks[window]

    @property
    def longest_decoding(self) -> int:
        return max(span.context for span in self.spans[: self.num_decoding])


def in_batch_order(chunks: Seq[Chunk]) -> tuple[Chunk, ...]:
    """Decoding sequences first, and within each part one adapter's rows side by side."""
    return tuple(sorted(chunks, key=lambda chunk: (chunk.count > 1, chunk.sequence.adapter or "")))


def pack(
    chunks: Seq[Chunk],
    cache: KVCache,
    device: torch.device,
    kernels: Kernels | None = None,
    flash: Flash | None = None,
) -> PagedBatch:
    """Lay out chunks, given in batch order, side by side without padding."""
    spans: list[Span] = []
    row = 0
    for chunk in chunks:
        spans.append(Span(row, row + chunk.count, chunk.stop))
        row += chunk.count
    widest = max(len(chunk.sequence.blocks) for chunk in chunks)
    table = torch.tensor(
        [chunk.sequence.blocks + [0] * (widest - len(chunk.sequence.blocks)) for chunk in chunks], dtype=torch.int32
    )
    contexts = torch.tensor([[span.context] for span in spans])
    slots_NL = reading_slots(table, contexts, cache.block_size)
    slots_T = torch.cat([slots_NL[i, chunk.start : chunk.stop] for i, chunk in enumerate(chunks)])
    return PagedBatch(
        cache=cache,
        spans=tuple(spans),
        num_decoding=sum(chunk.count == 1 for chunk in chunks),
        slots_T=slots_T.to(device),
        slots_NL=slots_NL.to(device),
        block_table_NB=table.to(device),
        contexts_N=contexts[:, 0].int().to(device),
        starts_N=torch.tensor([0, *(span.stop for span in spans)], dtype=torch.int32).to(device),
        kernels=kernels,
        table=None if kernels is None else _table(spans, slots_T, slots_NL),
        flash=flash,
    )


def reading_slots(table_NB: Tensor, contexts_N1: Tensor, block_size: int) -> Tensor:
    """`[N, L]`: where each sequence's context lies, for as many positions as its row of the table has.

    Beyond its context a row reads its own first slot: 0 * NaN is NaN, so not even masked slots may be a stranger's.
    """
    offsets = torch.arange(block_size, dtype=torch.int32, device=table_NB.device)
    slots_NL = (table_NB[:, :, None] * block_size + offsets).flatten(1).long()
    positions = torch.arange(slots_NL.shape[1], device=table_NB.device)
    return torch.where(positions < contexts_N1, slots_NL, slots_NL[:, :1])


def _table(spans: Seq[Span], slots_T: Tensor, slots_NL: Tensor) -> SpanTable:
    starts, counts, contexts = torch.tensor([(span.start, span.count, span.context) for span in spans]).t()
    return span_table(slots_T, starts.contiguous(), counts.contiguous(), contexts.contiguous(), slots_NL)
