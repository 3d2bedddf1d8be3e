"""Decode steps that are recorded once for a number of rows, and replayed with other tokens, contexts and adapters.

Owns the memory such a step reads and writes, and the choice which steps are replayed. How one is recorded is the
recorder's affair; the runner computes all other steps as they come.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.layer import ActiveGrafts
from adapters.manifest import AdapterId
from adapters.row_allocator import bucket
from adapters.stage import NO_GAIN, Placement, Stage, Staged
from engine.batch import PagedBatch, Span
from engine.flash import Flash
from engine.kv_cache import KVCache
from engine.recording import Recorder, Replay
from engine.scheduler import Chunk
from loader.base import Base

log = logging.getLogger(__name__)

ID, POSITION, SLOT, CONTEXT, FIRST_RANK, END_RANK, GAIN, BLOCKS = range(8)
"""The columns of a row; from BLOCKS on, the sequence's blocks."""
EMPTY = Placement({}, {}, 0)


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes a recording another one: shapes, and whether there are gains or merged weights."""

    rows: int
    ranks: int
    gains: bool
    merged: bool


class RecordedDecoding:
    """Steps of at most `max_rows` rows, each of which decodes one sequence of at most `max_blocks` blocks.

    Rows are padded to a power of two with copies of the last one, which compute and store the same once more: nothing
    of a stranger's is read, and no block is kept for what nobody wants. Which adapter is whose is data, so any mix of
    adapters and ranks is replayed from the recordings of a few widths of the stage.
    """

    def __init__(
        self,
        base: Base,
        cache: KVCache,
        stage: Stage,
        active: ActiveGrafts,
        recorder: Recorder,
        flash: Flash | None,
        max_rows: int,
        max_blocks: int,
    ) -> None:
        assert base.kernels is None, "compiled kernels run at once"
        self._base, self._cache, self._stage, self._active = base, cache, stage, active
        self._recorder, self._flash = recorder, flash
        self._max_rows = max_rows
        self._max_context = max_blocks * cache.block_size
        self._inputs = torch.zeros(max_rows, BLOCKS + max_blocks, dtype=torch.long, device=base.device)
        self._host = torch.zeros(max_rows, BLOCKS + max_blocks, dtype=torch.long)
        self._logits: Tensor | None = None
        self._recordings: dict[Kind, Replay] = {}
        self.works = True

    def logits(self, chunks: Sequence[Chunk], merged: AdapterId | None) -> Tensor | None:
        """`[N, V]`, a row for each of N chunks; None where the step is to be computed as any other.

        They are the caller's until the next step.
        """
        own = [merged is not None and chunk.sequence.adapter == merged for chunk in chunks]
        decodes = len(chunks) <= self._max_rows and all(chunk.count == 1 for chunk in chunks)
        if not self.works or not decodes or any(own) != all(own):
            return None
        ids = [] if any(own) else [chunk.sequence.adapter for chunk in chunks]
        adapters = [adapter for adapter in dict.fromkeys(ids) if adapter is not None]
        placement = self._stage.place(adapters) if adapters else EMPTY
        if placement is None:
            return None
        kind = Kind(bucket(len(chunks), self._max_rows), placement.width, bool(placement.gains), any(own))
        self._fill(chunks, placement, kind.rows)
        if not self._replay(kind):
            return None
        assert self._logits is not None
        return self._logits[: len(chunks)]

    def forget_merged(self) -> None:
        """Merged weights have come or gone; what was recorded with them has no more use.

        The others go with it and are made anew: with the first of a stream's graphs that is let go, torch 2.13 takes
        away the workspace that the products in all of them write to (pytorch issue 193402).
        """
        if any(kind.merged for kind in self._recordings):
            self._recordings = {}

    def _fill(self, chunks: Sequence[Chunk], placement: Placement, rows: int) -> None:
        """Tell the device of the step in one copy. What a row holds beyond its blocks is never read."""
        host, size = self._host.numpy(), self._cache.block_size
        for row, chunk in enumerate(chunks):
            blocks, adapter = chunk.sequence.blocks, chunk.sequence.adapter
            ranks = placement.ranks.get(adapter, range(0)) if adapter else range(0)
            gain = placement.gains.get(adapter, NO_GAIN) if adapter else NO_GAIN
            slot = blocks[chunk.start // size] * size + chunk.start % size
            token = chunk.sequence.tokens[chunk.start]
            host[row, :BLOCKS] = token, chunk.start, slot, chunk.stop, ranks.start, ranks.stop, gain
            host[row, BLOCKS : BLOCKS + len(blocks)] = blocks
        host[len(chunks) : rows] = host[len(chunks) - 1]
        self._inputs[:rows].copy_(self._host[:rows])

    def _replay(self, kind: Kind) -> bool:
        """Compute the step, by a recording that is made now if it is the first of its kind; False where none can be."""
        if kind not in self._recordings:
            try:
                self._recordings[kind] = self._recorder.record(lambda: self._compute(kind))
            except RuntimeError as error:
                log.warning("decode steps are computed without CUDA graphs from now on: %s", error)
                self.works, self._recordings = False, {}
                return False
        self._recordings[kind]()
        return True

    def _compute(self, kind: Kind) -> None:
        """The forward pass over the first `kind.rows` rows of the inputs. Everything it reads stays where it is."""
        rows_TC = self._inputs[: kind.rows]
        ranks = torch.arange(kind.ranks, device=rows_TC.device)
        outside_TR = (ranks < rows_TC[:, FIRST_RANK, None]) | (ranks >= rows_TC[:, END_RANK, None])
        gains_T = rows_TC[:, GAIN] if kind.gains else None
        self._active.staged = Staged(self._stage, outside_TR, gains_T, kind.merged)
        try:
            output = self._base.model(
                input_ids=rows_TC[:, ID][None],
                position_ids=rows_TC[:, POSITION][None],
                use_cache=False,
                logits_to_keep=0,
                paged=self._batch(rows_TC),
            )
        finally:
            self._active.staged = None
        logits_TV: Tensor = output.logits[0]
        if self._logits is None:
            self._logits = logits_TV.new_empty(self._max_rows, logits_TV.shape[1])
        self._logits[: kind.rows].copy_(logits_TV)

    def _batch(self, rows_TC: Tensor) -> PagedBatch:
        """Made anew for each pass, since it keeps what it derives from contexts that change."""
        rows = rows_TC.shape[0]
        table_NB, contexts_N = rows_TC[:, BLOCKS:].int(), rows_TC[:, CONTEXT].int()
        slots_NL = table_NB.new_empty(rows, 0, dtype=torch.long)  # FlashAttention reads the table itself
        if self._flash is None:
            slots_NL = _reading_slots(table_NB, contexts_N, self._cache.block_size)
        return PagedBatch(
            cache=self._cache,
            spans=tuple(Span(row, row + 1, self._max_context) for row in range(rows)),
            num_decoding=rows,
            slots_T=rows_TC[:, SLOT].contiguous(),
            slots_NL=slots_NL,
            block_table_NB=table_NB,
            contexts_N=contexts_N,
            starts_N=torch.arange(rows + 1, dtype=torch.int32, device=rows_TC.device),
            flash=self._flash,
            recorded=True,
        )


def _reading_slots(table_NB: Tensor, contexts_N: Tensor, block_size: int) -> Tensor:
    """As `pack` tells, from what only the device knows; a GPU with FlashAttention needs none."""
    offsets = torch.arange(block_size, dtype=torch.int32, device=table_NB.device)
    slots_NL = (table_NB[:, :, None] * block_size + offsets).flatten(1).long()
    positions_L = torch.arange(slots_NL.shape[1], device=table_NB.device)
    return torch.where(positions_L < contexts_N[:, None], slots_NL, slots_NL[:, :1])
