"""The adapters of a step side by side in memory that never moves, for steps that are recorded once and replayed.

Owns that memory and `Staged`, which applies it. A recording has the addresses it was made with and shapes that never
change, so it cannot read adapters where the bank holds them; the active ones are copied here, at their true rank, one
after the other. Who sits where is `seating.py`'s.

Shape suffixes: T rows of a step, I inputs, O outputs, R rank rows, G gain rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.bank import Bank, Loaded
from adapters.manifest import AdapterId
from adapters.seating import Seating, Seats
from loader.product import Change
from loader.shape import LinearShape

UNIT = 16
"""The rank rows that come with one row for a DoRA gain; 16 units hold 16 adapters of rank 16."""
MOST_UNITS = 16
NO_GAIN = 0
"""The gain row of ones, for rows that have none."""


@dataclass(frozen=True, slots=True)
class Boards:
    """The stage at one linear: `a_RI`, `b_RO` times its adapter's scaling, and DoRA's gains."""

    a_RI: Tensor
    b_RO: Tensor
    gain_GO: Tensor


@dataclass(frozen=True, slots=True)
class Cast:
    """A step's adapters on the stage: their rank rows within `width`, and the gain rows of those that have gains."""

    ranks: Mapping[AdapterId, range]
    gains: Mapping[AdapterId, int]
    width: int


class Stage:
    """`units` times UNIT rank rows and as many gain rows. What is on it is finite, as the bank's tensors are."""

    def __init__(self, bank: Bank, linears: Mapping[str, LinearShape], dtype: torch.dtype, units: int) -> None:
        rows, gain_rows = units * UNIT, units + 1 if units else 0
        self._bank = bank
        self._ranks, self._gains = Seating(rows), Seating(units)
        self.boards = {
            path: Boards(
                torch.zeros(rows, linear.in_features, dtype=dtype, device=bank.device),
                torch.zeros(rows, linear.out_features, dtype=dtype, device=bank.device),
                torch.ones(gain_rows, linear.out_features, device=bank.device),
            )
            for path, linear in linears.items()
        }

    @property
    def num_bytes(self) -> int:
        tensors = (t for board in self.boards.values() for t in (board.a_RI, board.b_RO, board.gain_GO))
        return sum(tensor.nbytes for tensor in tensors)

    def call(self, adapters: Sequence[AdapterId]) -> Cast | None:
        """Bring placed adapters on stage; None if they do not all fit on it."""
        loaded = {adapter: self._bank.get(adapter) for adapter in adapters}
        ranks = self._ranks.seat({adapter: _rank(one) for adapter, one in loaded.items()})
        gains = self._gains.seat({adapter: 1 for adapter, one in loaded.items() if _has_gain(one)})
        if ranks is None or gains is None:
            self.clear()  # one of the two has noted newcomers whom nobody brings
            return None
        try:
            self._bring(loaded, ranks, gains)
        except BaseException:
            self.clear()
            raise
        return Cast(
            ranks.rows, {adapter: NO_GAIN + 1 + rows.start for adapter, rows in gains.rows.items()}, ranks.width
        )

    def clear(self) -> None:
        """Bring whoever comes next anew."""
        self._ranks.clear()
        self._gains.clear()

    def _bring(self, loaded: Mapping[AdapterId, Loaded], ranks: Seats, gains: Seats) -> None:
        for adapter in ranks.newcomers:
            self._bring_ranks(loaded[adapter], ranks.rows[adapter])
        for adapter in gains.newcomers:
            row = NO_GAIN + 1 + gains.rows[adapter].start
            for path, board in self.boards.items():
                part = loaded[adapter].parts.get(path)
                board.gain_GO[row] = 1 if part is None or part.gain is None else part.gain

    def _bring_ranks(self, adapter: Loaded, rows: range) -> None:
        """Every rank row is written, zero where the adapter has no such rank: the last one's must not be read.

        `b_RO` is scaled here rather than h in each step: a step has few rows, and pays for every operation.
        """
        into: list[Tensor] = []
        values: list[Tensor] = []
        blank: list[Tensor] = []
        scaled: list[Tensor] = []
        scalings: list[float] = []
        for path, board in self.boards.items():
            part = adapter.parts.get(path)
            own = rows.start + (0 if part is None else part.low.rank)
            if part is not None:
                into += [board.a_RI[rows.start : own], board.b_RO[rows.start : own]]
                values += [part.low.a_RI, part.low.b_RO]
                scaled.append(board.b_RO[rows.start : own])
                scalings.append(part.low.scaling)
            if own < rows.stop:
                blank += [board.a_RI[own : rows.stop], board.b_RO[own : rows.stop]]
        torch._foreach_copy_(into, values)
        torch._foreach_mul_(scaled, scalings)
        if blank:
            torch._foreach_zero_(blank)


@dataclass(frozen=True, slots=True)
class Staged:
    """The rows of a step that is recorded: to which of the first `width` rank rows each is `outside_TR`.

    `gains_T` is each row's gain row, None where no row has a gain; `merged` says that all rows are the merged
    adapter's own. A stranger's products are selected away, as everywhere: 0 * inf is NaN.
    """

    stage: Stage
    outside_TR: Tensor
    gains_T: Tensor | None = None
    merged: bool = False

    def change(self, path: str, x_TI: Tensor) -> Change | None:
        """What the adapters on stage make of the rows of the linear at `path`."""
        width = self.outside_TR.shape[1]
        if width == 0:
            return None
        board = self.stage.boards[path]
        h_TR = torch.mm(x_TI.to(board.a_RI.dtype), board.a_RI[:width].t())
        plus_TO = torch.mm(h_TR.masked_fill_(self.outside_TR, 0), board.b_RO[:width])
        if self.gains_T is None:
            return Change(plus_TO)
        return Change(plus_TO, ((slice(0, x_TI.shape[0]), board.gain_GO[self.gains_T]),))


def unit_bytes(linears: Iterable[LinearShape], itemsize: int) -> int:
    """What a unit takes on the device; the row of ones is small beside it."""
    return sum(
        UNIT * (linear.in_features + linear.out_features) * itemsize + 4 * linear.out_features for linear in linears
    )


def units_within(budget: int, linears: Iterable[LinearShape], itemsize: int) -> int:
    """The units that half of `budget` holds: who is on stage is in the bank as well, so neither needs more."""
    each = tuple(linears)
    ones = sum(4 * linear.out_features for linear in each)
    return max(0, min(MOST_UNITS, (budget // 2 - ones) // unit_bytes(each, itemsize)))


def _rank(adapter: Loaded) -> int:
    return max((part.low.rank for part in adapter.parts.values()), default=0)


def _has_gain(adapter: Loaded) -> bool:
    return any(part.gain is not None for part in adapter.parts.values())
