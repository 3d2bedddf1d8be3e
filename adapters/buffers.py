"""The stage's buffers, and which of the base's linears are given the same rows.

Owns both. Linears of one module that read as many inputs lie in one stack, so that those that turn out to be given the
very same rows are multiplied in one call. What the buffers hold is the stage's.

Shape suffixes: S linears of a stack, R rank rows, I inputs, O outputs, G gain rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from loader.shape import LinearShape


@dataclass(frozen=True, slots=True)
class Stacked:
    """One layer of a stack."""

    stack: Tensor
    at: int

    @property
    def own(self) -> Tensor:
        return self.stack[self.at]

    def up_to(self, last: "Stacked") -> Tensor:
        """The layers from this one to `last`, which is on the same stack."""
        assert self.stack is last.stack
        return self.stack[self.at : last.at + 1]


@dataclass(frozen=True, slots=True)
class LinearBuffers:
    """The stage at one linear: `A [R, I]`, `B [R, O]` times its adapter's scaling, and DoRA's gains `[G, O]`."""

    a: Stacked
    b: Stacked
    gain_GO: Tensor

    @property
    def a_RI(self) -> Tensor:
        return self.a.own

    @property
    def b_RO(self) -> Tensor:
        return self.b.own


def allocate_buffers(
    linears: Mapping[str, LinearShape], rows: int, gain_rows: int, dtype: torch.dtype, device: torch.device
) -> dict[str, LinearBuffers]:
    """For every linear, empty: ranks of zero, and gains of one."""
    made: dict[str, LinearBuffers] = {}
    for (_, inputs), siblings in groupby(linears, lambda path: (_module(path), linears[path].in_features)):
        paths = list(siblings)
        a_SRI = torch.zeros(len(paths), rows, inputs, dtype=dtype, device=device)
        for outputs, alike in groupby(enumerate(paths), lambda numbered: linears[numbered[1]].out_features):
            numbered = list(alike)
            b_SRO = torch.zeros(len(numbered), rows, outputs, dtype=dtype, device=device)
            for at, (number, path) in enumerate(numbered):
                gain_GO = torch.ones(gain_rows, outputs, device=device)
                made[path] = LinearBuffers(Stacked(a_SRI, number), Stacked(b_SRO, at), gain_GO)
    return made


class Families:
    """Linears that are given the very same rows: the queries', keys' and values', or an MLP's gate and what it gates.

    That is seen, not known: who follows another on its stack and is given the same tensor is of its family from then
    on.
    """

    def __init__(self, buffers: Mapping[str, LinearBuffers]) -> None:
        self._buffers = buffers
        self._members: dict[str, list[str]] = {}
        self._latest: tuple[str, Tensor] | None = None

    def record_input(self, path: str, x: Tensor) -> None:
        """Note that the linear at `path` is given `x`. What was seen the first time holds from then on."""
        if path not in self._members:
            self._members[path] = self._family(path, x)
            self._members[path].append(path)
            self._latest = path, x

    def rest_of(self, path: str) -> Sequence[str]:
        """`path`, whose input has been recorded, and those of its family that are given the same after it."""
        family = self._members[path]
        return family[family.index(path) :]

    def _family(self, path: str, x: Tensor) -> list[str]:
        if self._latest is not None:
            before, given = self._latest
            one, next_ = self._buffers[before].a, self._buffers[path].a
            if given is x and one.stack is next_.stack and one.at + 1 == next_.at:
                return self._members[before]
        return []

    def runs(self, paths: Sequence[str]) -> Iterator[tuple[slice, Tensor]]:
        """Those of a family that lie on one stack of B too, and their part of it `[S, R, O]`."""
        begun = 0
        for _, alike in groupby(paths, lambda path: id(self._buffers[path].b.stack)):
            run = list(alike)
            yield slice(begun, begun + len(run)), self._buffers[run[0]].b.up_to(self._buffers[run[-1]].b)
            begun += len(run)


def _module(path: str) -> str:
    return path.rpartition(".")[0]
