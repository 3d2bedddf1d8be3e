"""How the tensors of a file are read: in few large pieces, planned once for all files that are laid out alike.

Owns that plan: which bytes are read together, what the digest takes in before each tensor, and which tensors lie so
evenly that they can be moved together. An adapter has hundreds, and a request waits for it. Reads no file, knows no
torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import NamedTuple

from adapters.expected import FACTOR_A, FACTOR_B, MAGNITUDE, PREFIX
from adapters.header import TensorSpec
from adapters.identity import HANDED_BYTES, tensor_record

PIECE_BYTES = 1 << 19
"""What is read at once: with what it is converted to, it finds room in a large second-level cache."""


class Group(NamedTuple):
    """Tensors of one dtype and shape that are the same thing in every layer: `module` is the linear's last name, and
    `suffix` how the tensors' names end."""

    dtype: str
    shape: tuple[int, ...]
    module: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Run:
    """`count` tensors of group number `group`, its `first` and those after it, one every `step` bytes from `begin`."""

    group: int
    first: int
    count: int
    begin: int
    step: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [`start`, `stop`) of the file: whole tensors of one dtype, side by side, in the digest's order.

    `spans` are their records in the digest, each with where the tensor's bytes begin and end in the piece.
    """

    dtype: str
    start: int
    stop: int
    spans: tuple[tuple[bytes, int, int], ...]
    runs: tuple[Run, ...]

    def hashed(self, content: memoryview) -> Iterator[bytes | memoryview]:
        """What the digest takes in of a piece with this content."""
        for record, begin, end in self.spans:
            yield record
            yield content[begin:end]


class Place(NamedTuple):
    """Where a linear's factors begin in the adapter's allocation, in elements: `A [rank, in]` and `B [rank, out]`."""

    a: int
    b: int
    rank: int
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class Layout:
    """`groups` have their tensors' names in the digest's order; `pieces` hold every tensor once, in that order too.

    In memory the factors lie in one allocation of so many `elements`, group after group: `begins` says where each
    group's are, `places` by path where each linear's are. Magnitudes are not in it.
    """

    groups: Mapping[Group, Sequence[str]]
    pieces: tuple[Piece, ...]
    begins: tuple[int, ...]
    places: Mapping[str, Place]
    elements: int


def lay_out(tensors: Mapping[str, TensorSpec]) -> Layout:
    """A piece ends with the tensor that fills it, or where the digest goes on elsewhere in the file."""
    groups: dict[Group, list[str]] = {}
    drafts: list[_Draft] = []
    whole = sum(spec.stop - spec.start for spec in tensors.values())
    size = PIECE_BYTES if whole < HANDED_BYTES else HANDED_BYTES  # then each is hashed in another thread
    for name in sorted(tensors):
        spec = tensors[name]
        stem, suffix = _split(name)
        group = Group(spec.dtype, spec.shape, stem.rpartition(".")[2], suffix)
        names = groups.setdefault(group, [])
        if not (drafts and drafts[-1].takes(spec, size)):
            drafts.append(_Draft(spec.dtype, spec.start, spec.start))
        drafts[-1].add(tensor_record(name, spec), spec, group, len(names))
        names.append(name)
    numbers = {group: number for number, group in enumerate(groups)}
    ends = list(accumulate(_elements(group, names) for group, names in groups.items()))
    begins = (0, *ends[:-1])
    pieces = tuple(draft.piece(numbers) for draft in drafts)
    return Layout(groups, pieces, begins, _places(groups, begins), ends[-1] if ends else 0)


def _elements(group: Group, names: Sequence[str]) -> int:
    return 0 if group.suffix == MAGNITUDE else len(names) * prod(group.shape)


def _places(groups: Mapping[Group, Sequence[str]], begins: Sequence[int]) -> dict[str, Place]:
    """Of the linears that have both factors."""
    found: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {FACTOR_A: {}, FACTOR_B: {}, MAGNITUDE: {}}
    for (group, names), begin in zip(groups.items(), begins, strict=True):
        size = prod(group.shape)
        for number, name in enumerate(names):
            path = name.removeprefix(PREFIX).removesuffix(group.suffix)
            found[group.suffix][path] = begin + number * size, group.shape
    of_b = found[FACTOR_B]
    return {
        path: Place(a, of_b[path][0], shape[0], shape[1], of_b[path][1][0])
        for path, (a, shape) in found[FACTOR_A].items()
        if path in of_b
    }


def _split(name: str) -> tuple[str, str]:
    suffix = FACTOR_A if name.endswith(FACTOR_A) else FACTOR_B if name.endswith(FACTOR_B) else MAGNITUDE
    return name.removesuffix(suffix), suffix


@dataclass(slots=True)
class _Draft:
    """A piece in the making. `places` are its tensors by group: the number there, and where the bytes begin."""

    dtype: str
    start: int
    stop: int
    spans: list[tuple[bytes, int, int]] = field(default_factory=list)
    places: dict[Group, list[tuple[int, int]]] = field(default_factory=dict)

    def takes(self, spec: TensorSpec, size: int) -> bool:
        return spec.dtype == self.dtype and spec.start == self.stop and self.stop - self.start < size

    def add(self, record: bytes, spec: TensorSpec, group: Group, number: int) -> None:
        begin, self.stop = spec.start - self.start, spec.stop
        self.spans.append((record, begin, self.stop - self.start))
        self.places.setdefault(group, []).append((number, begin))

    def piece(self, numbers: Mapping[Group, int]) -> Piece:
        runs = tuple(run for group, places in self.places.items() for run in _runs(numbers[group], places))
        return Piece(self.dtype, self.start, self.stop, tuple(self.spans), runs)


def _runs(group: int, places: Sequence[tuple[int, int]]) -> Iterator[Run]:
    """As few as there can be, each as long as the distance from one tensor to the next stays the same."""
    at = 0
    while at < len(places):
        first, begin = places[at]
        step = places[at + 1][1] - begin if at + 1 < len(places) else 0
        count = 1
        while at + count < len(places) and places[at + count][1] == begin + count * step:
            count += 1
        yield Run(group, first, count, begin, step)
        at += count
