"""How a linear of the base carries many adapters at once.

Owns the wrapper around each linear and the selection that tells it which rows belong to which adapter in the
current step. Knows the bank, not the registry, nor why these adapters were chosen.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from adapters.bank import Bank, Part
from adapters.manifest import AdapterId
from adapters.op import LowRank, Term, Terms, add_low_rank
from adapters.stage import Staged
from loader.product import Change, changed
from native.tables import TermTable, term_table


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `[start, stop)` of the batch belong to `adapter`, or to the plain base."""

    adapter: AdapterId | None
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Touch:
    """What a step's adapters do at one linear: their low-rank products by number, and the rows that a gain covers."""

    lows: tuple[LowRank | None, ...]
    gains: tuple[tuple[slice, Tensor], ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """One step's rows: `terms` to add by adapter number; `adapters` gives the numbers their ids.

    While an adapter is merged, `pieces` are the runs of rows that are its own (True) or not, in order; otherwise empty.
    `table` says the same as `terms` to the compiled kernels, where the bank has them.
    """

    adapters: tuple[AdapterId, ...]
    terms: Terms
    pieces: tuple[tuple[bool, slice], ...] = ()
    table: TermTable | None = None
    _touches: dict[str, Touch | None] = field(default_factory=dict)

    @classmethod
    def of(cls, segments: Sequence[Segment], bank: Bank, merged: AdapterId | None = None) -> "Selection":
        """Segments in row order, without gaps, from row 0. Claims their adapters for this stream."""
        grafted = [s for s in segments if s.adapter != merged]
        adapters = tuple(dict.fromkeys(_ids(grafted)))
        for adapter in adapters:
            bank.claim(adapter)
        number = {adapter: index for index, adapter in enumerate(adapters)}
        terms = [Term(number[s.adapter], s.start, s.stop) for s in grafted if s.adapter is not None]
        rows = segments[-1].stop if segments else 0
        owned = any(s.adapter == merged for s in segments) if merged else False
        pieces = tuple((s.adapter == merged, slice(s.start, s.stop)) for s in segments) if owned else ()
        table = None
        if bank.kernels is not None:
            placed = [(term.start, term.stop, bank.table(adapters[term.index])) for term in terms]
            table = term_table(placed, rows)
        return cls(adapters, Terms(rows, tuple(terms), bank.device), pieces, table)

    @property
    def all_merged(self) -> bool:
        return all(own for own, _ in self.pieces)

    def touch(self, path: str, bank: Bank) -> Touch | None:
        """What the adapters do at the linear `path`, None if none of them does anything there."""
        if path not in self._touches:
            parts = [bank.part(adapter, path) for adapter in self.adapters]
            lows = tuple(part.low if part else None for part in parts)
            self._touches[path] = Touch(lows, tuple(_gains(parts, self.terms))) if any(lows) else None
        return self._touches[path]


class Selections:
    """Makes selections over one bank, and keeps the latest two: a decoding batch asks for the same ones every step."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._seen = bank.changes
        self._kept: dict[tuple[tuple[Segment, ...], AdapterId | None], Selection] = {}

    def of(self, segments: Sequence[Segment], merged: AdapterId | None) -> Selection:
        """As Selection.of. What was kept is of no use once the bank has other tensors."""
        key = tuple(segments), merged
        if self._seen != self._bank.changes or len(self._kept) > 1 and key not in self._kept:
            self._seen, self._kept = self._bank.changes, {}
        if key not in self._kept:
            self._kept[key] = Selection.of(segments, self._bank, merged)
        return self._kept[key]


class ActiveGrafts:
    """The selections of the step under way; every grafted linear of one model holds the same one.

    The head sees fewer rows than the other linears: only those whose logits are needed. While a step is recorded,
    all of them, the head too, follow `staged`.
    """

    def __init__(self) -> None:
        self.tokens: Selection | None = None
        self.head: Selection | None = None
        self.staged: Staged | None = None


class GraftedLinear(nn.Module):
    """`y = g * (W x + s B (A x)) + bias` by row, `W x + bias` where a row has no adapter. Wraps the base's linear.

    A merged adapter's rows take `W' = g * (W + s B A)` instead, which stands beside W, so the others' rows
    never meet it. A step that mixes both reads both weights.
    """

    def __init__(self, path: str, base: nn.Module, bank: Bank, active: ActiveGrafts) -> None:
        super().__init__()
        self.base = base
        self.merged: nn.Module | None = None
        self.path = path
        self._bank = bank
        self._active = active
        self._is_head = False

    def serve_as_head(self) -> None:
        """From now on rows are those of the head's selection."""
        self._is_head = True

    @property
    def weight(self) -> Tensor:
        """Some architectures read a linear's weight for its dtype or device."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: object = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        if self._active.staged is not None:
            return self._staged(x, self._active.staged)
        selection = self._active.head if self._is_head else self._active.tokens
        if selection is None:
            return _tensor(self.base(x))
        touch = selection.touch(self.path, self._bank)
        change = None if touch is None else self._change(x, touch, selection)
        if self.merged is None or not selection.pieces:
            return _multiply(self.base, x, change)
        if selection.all_merged:
            return _tensor(self.merged(x))
        self._check_rows(x, selection)
        x_TI = x.reshape(-1, x.shape[-1])
        products = [
            _tensor(self.merged(x_TI[rows])) if own else _multiply(self.base, x_TI[rows], change and change.of(rows))
            for own, rows in selection.pieces
        ]
        return torch.cat(products).view(*x.shape[:-1], -1)

    def _staged(self, x: Tensor, staged: Staged) -> Tensor:
        if staged.merged and self.merged is not None:
            return _tensor(self.merged(x))
        return _multiply(self.base, x, staged.change(self.path, x))

    def _check_rows(self, x: Tensor, selection: Selection) -> None:
        rows = x.numel() // x.shape[-1]
        if rows != selection.terms.num_rows:
            raise RuntimeError(f"{self.path} was given {rows} rows in a batch of {selection.terms.num_rows}")

    def _change(self, x: Tensor, touch: Touch, selection: Selection) -> Change:
        """What the step's adapters make of this linear's rows."""
        self._check_rows(x, selection)
        x_TI, outputs = x.reshape(-1, x.shape[-1]), cast(int, self.base.out_features)
        kernels = self._bank.kernels
        if kernels is not None and selection.table is not None and kernels.takes(x_TI):
            plus_TO = kernels.low_rank(x_TI, selection.table, self._bank.numbers[self.path], outputs)
        else:
            plus_TO = torch.zeros(x_TI.shape[0], outputs, dtype=_dtype(touch.lows), device=x.device)
            add_low_rank(plus_TO, x_TI, touch.lows, selection.terms)
        return Change(plus_TO, touch.gains)


def graft(
    model: nn.Module, paths: Iterable[str], bank: Bank, active: ActiveGrafts, head: str | None
) -> dict[str, GraftedLinear]:
    """Wrap the linears at `paths` in place. `head` is the path of the one that is given fewer rows."""
    grafted: dict[str, GraftedLinear] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        grafted[path] = GraftedLinear(path, getattr(owner, name), bank, active)
        if path == head:
            grafted[path].serve_as_head()
        setattr(owner, name, grafted[path])
    return grafted


def _ids(segments: Iterable[Segment]) -> Iterator[AdapterId]:
    return (segment.adapter for segment in segments if segment.adapter is not None)


def _dtype(lows: Sequence[LowRank | None]) -> torch.dtype:
    """What the bank holds adapters in."""
    return next(low.a_RI.dtype for low in lows if low is not None)


def _gains(parts: Sequence[Part | None], terms: Terms) -> Iterator[tuple[slice, Tensor]]:
    """The rows whose adapter has a DoRA gain here."""
    for term in terms.terms:
        part = parts[term.index]
        if part is not None and part.gain is not None:
            yield slice(term.start, term.stop), part.gain


def _multiply(linear: nn.Module, x: Tensor, change: Change | None) -> Tensor:
    return _tensor(linear(x)) if change is None else changed(linear, x, change)


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
