"""The adapters of a step side by side in memory that never moves, for steps that are recorded once and replayed.

Owns `Stage` and `Staged`, which applies it; the memory itself is `buffers.py`'s. A recording has the addresses it was
made with and shapes that never change, so it cannot read adapters where the bank holds them; the active ones are copied
here, at their true rank, one after the other. Who has which rows is `row_allocator.py`'s.

Shape suffixes: T rows of a step, I inputs, O outputs, R rank rows, S linears of a family.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.bank import Bank, Loaded
from adapters.buffers import Families, allocate_buffers
from adapters.manifest import AdapterId
from adapters.row_allocator import RowAllocation, RowAllocator
from loader.product import Change
from loader.shape import LinearShape

UNIT = 16
"""The rank rows that come with one row for a DoRA gain; 16 units hold 16 adapters of rank 16."""
MAX_UNITS = 16
NO_GAIN = 0
"""The gain row of ones, for rows that have none."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a step's adapters are on the stage: their rank rows within `width`, and gain rows where they have gains."""

    ranks: Mapping[AdapterId, range]
    gains: Mapping[AdapterId, int]
    width: int


class Stage:
    """`units` times UNIT rank rows and as many gain rows. What they hold is finite, as the bank's tensors are."""

    def __init__(self, bank: Bank, linears: Mapping[str, LinearShape], dtype: torch.dtype, units: int) -> None:
        rows, gain_rows = units * UNIT, units + 1 if units else 0
        self._bank = bank
        self._ranks, self._gains = RowAllocator(rows), RowAllocator(units)
        self.buffers = allocate_buffers(linears, rows, gain_rows, dtype, bank.device)
        self.families = Families(self.buffers)

    @property
    def num_bytes(self) -> int:
        tensors = (t for one in self.buffers.values() for t in (one.a_RI, one.b_RO, one.gain_GO))
        return sum(tensor.nbytes for tensor in tensors)

    def place(self, adapters: Sequence[AdapterId]) -> Placement | None:
        """Copy adapters from the bank to the stage; None if they do not all fit there."""
        loaded = {adapter: self._bank.claim(adapter) for adapter in adapters}
        ranks = self._ranks.allocate({adapter: _rank(one) for adapter, one in loaded.items()})
        gains = self._gains.allocate({adapter: 1 for adapter, one in loaded.items() if _has_gain(one)})
        if ranks is None or gains is None:
            self.clear()  # one of the two may have rows allocated that nobody fills
            return None
        try:
            self._copy(loaded, ranks, gains)
        except BaseException:
            self.clear()
            raise
        return Placement(
            ranks.rows, {adapter: NO_GAIN + 1 + rows.start for adapter, rows in gains.rows.items()}, ranks.width
        )

    def clear(self) -> None:
        """Forget what is there: the next step's adapters are all copied anew."""
        self._ranks.clear()
        self._gains.clear()

    def _copy(self, loaded: Mapping[AdapterId, Loaded], ranks: RowAllocation, gains: RowAllocation) -> None:
        for adapter in ranks.new:
            self._copy_ranks(loaded[adapter], ranks.rows[adapter])
        for adapter in gains.new:
            row = NO_GAIN + 1 + gains.rows[adapter].start
            for path, buffers in self.buffers.items():
                part = loaded[adapter].parts.get(path)
                buffers.gain_GO[row] = 1 if part is None or part.gain is None else part.gain

    def _copy_ranks(self, adapter: Loaded, rows: range) -> None:
        """Every rank row is written, zero where the adapter has no such rank: the last one's must not be read.

        `b_RO` is scaled here rather than h in each step: a step has few rows, and pays for every operation.
        """
        into: list[Tensor] = []
        values: list[Tensor] = []
        blank: list[Tensor] = []
        scaled: list[Tensor] = []
        scalings: list[float] = []
        for path, buffers in self.buffers.items():
            part = adapter.parts.get(path)
            own = rows.start + (0 if part is None else part.low.rank)
            if part is not None:
                into += [buffers.a_RI[rows.start : own], buffers.b_RO[rows.start : own]]
                values += [part.low.a_RI, part.low.b_RO]
                scaled.append(buffers.b_RO[rows.start : own])
                scalings.append(part.low.scaling)
            if own < rows.stop:
                blank += [buffers.a_RI[own : rows.stop], buffers.b_RO[own : rows.stop]]
        torch._foreach_copy_(into, values)
        torch._foreach_mul_(scaled, scalings)
        if blank:
            torch._foreach_zero_(blank)


@dataclass(frozen=True, slots=True)
class Staged:
    """The rows of a step that is recorded: to which of the first `width` rank rows each is `outside_TR`.

    `gains_T` is each row's gain row, None where no row has a gain; `merged` says that all rows are the merged
    adapter's own. Products with ranks outside a row's own are masked, not multiplied by 0: 0 * inf is NaN.
    """

    stage: Stage
    outside_TR: Tensor
    gains_T: Tensor | None = None
    merged: bool = False
    _given: list[Tensor] = field(default_factory=list)
    _ready: dict[str, Tensor] = field(default_factory=dict)

    def change(self, path: str, x: Tensor) -> Change | None:
        """What the adapters on stage make of the rows `[..., I]` of the linear at `path`.

        Those that will be given the same rows are computed with it: on a GPU a step of few rows costs its launches.
        """
        if self.outside_TR.shape[1] == 0:
            return None
        if path not in self._ready or self._given[0] is not x:
            self.stage.families.record_input(path, x)
            paths = self.stage.families.rest_of(path)
            self._given[:] = [x]
            self._ready.clear()
            self._ready.update(zip(paths, self._products(paths, x.reshape(-1, x.shape[-1])), strict=True))
        plus_TO = self._ready.pop(path)
        if self.gains_T is None:
            return Change(plus_TO)
        return Change(plus_TO, ((slice(0, len(plus_TO)), self.stage.buffers[path].gain_GO[self.gains_T]),))

    def _products(self, paths: Sequence[str], x_TI: Tensor) -> Iterator[Tensor]:
        """`B A x [T, O]` of each linear at `paths`, which are a family."""
        width, first, last = self.outside_TR.shape[1], *(self.stage.buffers[path].a for path in (paths[0], paths[-1]))
        a_SRI = first.up_to(last)[:, :width]
        x_STI = x_TI.to(a_SRI.dtype).expand(len(paths), -1, -1)
        h_STR = _times(x_STI, a_SRI.transpose(1, 2)).masked_fill_(self.outside_TR, 0)
        for own, b_SRO in self.stage.families.runs(paths):
            yield from _times(h_STR[own], b_SRO[:, :width])


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Products of matrices in pairs; of one pair as such, for which there are more kernels to choose from."""
    return torch.bmm(left, right) if len(left) > 1 else torch.mm(left[0], right[0])[None]


def unit_bytes(linears: Iterable[LinearShape], itemsize: int) -> int:
    """What a unit takes on the device; the row of ones is small beside it."""
    return sum(
        UNIT * (linear.in_features + linear.out_features) * itemsize + 4 * linear.out_features for linear in linears
    )


def units_within(budget: int, linears: Iterable[LinearShape], itemsize: int) -> int:
    """The units that half of `budget` holds: who is on stage is in the bank as well, so neither needs more."""
    each = tuple(linears)
    ones = sum(4 * linear.out_features for linear in each)
    return max(0, min(MAX_UNITS, (budget // 2 - ones) // unit_bytes(each, itemsize)))


def _rank(adapter: Loaded) -> int:
    return max((part.low.rank for part in adapter.parts.values()), default=0)


def _has_gain(adapter: Loaded) -> bool:
    return any(part.gain is not None for part in adapter.parts.values())
