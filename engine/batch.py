"""A step's tokens, packed: which row is whose, and where its keys and values live.

Owns the index tensors of one step. Knows plans and block numbers, not models.

Shape suffixes: T packed tokens, N sequences, L positions of context.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
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
    stops = list(accumulate(chunk.count for chunk in chunks))
    spans = tuple(Span(stop - chunk.count, stop, chunk.stop) for chunk, stop in zip(chunks, stops, strict=True))
    table_NB = np.zeros((len(chunks), max(len(chunk.sequence.blocks) for chunk in chunks)), np.int32)
    for row, chunk in enumerate(chunks):
        table_NB[row, : len(chunk.sequence.blocks)] = chunk.sequence.blocks
    reading_NL = _reading_slots(table_NB, [span.context for span in spans], cache.block_size)
    written = [slots[chunk.start : chunk.stop] for slots, chunk in zip(reading_NL, chunks, strict=True)]
    slots_T, slots_NL = torch.from_numpy(np.concatenate(written)), torch.from_numpy(reading_NL)
    return PagedBatch(
        cache=cache,
        spans=spans,
        num_decoding=sum(chunk.count == 1 for chunk in chunks),
        slots_T=slots_T.to(device),
        slots_NL=slots_NL.to(device),
        block_table_NB=torch.from_numpy(table_NB).to(device),
        contexts_N=torch.tensor([span.context for span in spans], dtype=torch.int32, device=device),
        starts_N=torch.tensor([0, *stops], dtype=torch.int32, device=device),
        kernels=kernels,
        table=None if kernels is None else _table(spans, slots_T, slots_NL),
        flash=flash,
    )


def _reading_slots(table_NB: NDArray[np.int32], contexts: Seq[int], block_size: int) -> NDArray[np.int64]:
    """`[N, L]`: where each sequence's context lies, for as many positions as its row of the table has.

    Beyond its context a row reads its own first slot: 0 * NaN is NaN, so not even masked slots may be a stranger's.
    In numpy, in half of torch's time: this is done anew for every token.
    """
    offsets = np.arange(block_size)
    slots_NL = (table_NB[:, :, None] * block_size + offsets).reshape(len(table_NB), -1)
    for slots_L, context in zip(slots_NL, contexts, strict=True):
        slots_L[context:] = slots_L[0]
    return slots_NL


def _table(spans: Seq[Span], slots_T: Tensor, slots_NL: Tensor) -> SpanTable:
    columns = torch.from_numpy(np.array([(span.start, span.count, span.context) for span in spans]).T.copy())
    return span_table(slots_T, columns[0], columns[1], columns[2], slots_NL)
