"""How a linear of the base carries many adapters at once.

Owns the wrapper around each linear and the selection that tells it which rows belong to which adapter in the
current step. Knows the bank, not the registry, nor why these adapters were chosen.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.bank import Bank, Part
from adapters.manifest import AdapterId
from adapters.op import LowRank, Term, Terms, add_low_rank


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `[start, stop)` of the batch belong to `adapter`, or to the plain base."""

    adapter: AdapterId | None
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Selection:
    """One step's rows: `terms` to add by adapter number; `adapters` gives the numbers their ids.

    While an adapter is merged into the weights, every other row first has it undone.
    """

    adapters: tuple[AdapterId, ...]
    terms: Terms
    merged: AdapterId | None

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device, merged: AdapterId | None = None) -> "Selection":
        """Segments in row order, without gaps, from row 0."""
        grafted = [s for s in segments if s.adapter is not None and s.adapter != merged]
        foreign = [s for s in segments if s.adapter != merged] if merged else []
        adapters = tuple(dict.fromkeys([*([merged] if foreign and merged else []), *_ids(grafted)]))
        number = {adapter: index for index, adapter in enumerate(adapters)}
        terms = [Term(number[s.adapter], s.start, s.stop) for s in grafted if s.adapter]
        undone = [Term(0, s.start, s.stop, sign=-1) for s in foreign]
        rows = segments[-1].stop if segments else 0
        return cls(adapters, Terms(rows, (*undone, *terms), device), merged)

    @property
    def idle(self) -> bool:
        return not self.adapters


class ActiveGrafts:
    """The selections of the step under way; every grafted linear of one model holds the same one.

    The head sees fewer rows than the other linears: only those whose logits are needed.
    """

    def __init__(self) -> None:
        self.tokens: Selection | None = None
        self.head: Selection | None = None


class GraftedLinear(nn.Module):
    """`y = g * (W x + s B (A x)) + bias` by row, `W x + bias` where a row has no adapter. Wraps the base's linear."""

    def __init__(self, path: str, base: nn.Module, bank: Bank, active: ActiveGrafts, exact: torch.dtype) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self._bank = bank
        self._active = active
        self._exact = exact
        self._is_head = False

    def serve_as_head(self) -> None:
        """From now on rows are those of the head's selection."""
        self._is_head = True

    def swap(self, base: nn.Module) -> nn.Module:
        """Let another linear of the same shape do the base's part; gives back the one that did."""
        previous, self.base = self.base, base
        return previous

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
        y: Tensor = self.base(x)
        selection = self._active.head if self._is_head else self._active.tokens
        if selection is None or selection.idle:
            return y
        parts = [self._bank.part(adapter, self.path) for adapter in selection.adapters]
        if any(parts):
            self._graft(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]), parts, selection)
        return y

    def _graft(self, y_TO: Tensor, x_TI: Tensor, parts: Sequence[Part | None], selection: Selection) -> None:
        terms = selection.terms
        if y_TO.shape[0] != terms.num_rows:
            raise RuntimeError(f"{self.path} was given {y_TO.shape[0]} rows in a batch of {terms.num_rows}")
        for rows, gain in _gains(parts, terms, sign=-1):
            self._scale(y_TO[rows], 1 / gain)
        add_low_rank(y_TO, x_TI, [_low(part) for part in parts], terms, self._exact)
        for rows, gain in _gains(parts, terms, sign=1):
            self._scale(y_TO[rows], gain)

    def _scale(self, y_TO: Tensor, gain_O: Tensor) -> None:
        """Multiply what the weights made of x, but not the bias."""
        bias = 0 if self.bias is None else self.bias.float()
        y_TO.copy_((y_TO.float() - bias) * gain_O + bias)


def graft(
    model: nn.Module, paths: Iterable[str], bank: Bank, active: ActiveGrafts, exact: torch.dtype, head: str | None
) -> dict[str, GraftedLinear]:
    """Wrap the linears at `paths` in place. `head` is the path of the one that is given fewer rows."""
    grafted: dict[str, GraftedLinear] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        grafted[path] = GraftedLinear(path, getattr(owner, name), bank, active, exact)
        if path == head:
            grafted[path].serve_as_head()
        setattr(owner, name, grafted[path])
    return grafted


def _ids(segments: Iterable[Segment]) -> Iterator[AdapterId]:
    return (segment.adapter for segment in segments if segment.adapter is not None)


def _low(part: Part | None) -> LowRank | None:
    return None if part is None else part.low


def _gains(parts: Sequence[Part | None], terms: Terms, sign: int) -> Iterator[tuple[slice, Tensor]]:
    """The rows whose adapter has a DoRA gain here, among the terms of one sign."""
    for term in terms.terms:
        part = parts[term.index]
        if term.sign == sign and part is not None and part.gain is not None:
            yield slice(term.start, term.stop), part.gain
