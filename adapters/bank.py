"""The device tier's contents: every placed adapter's tensors, at their true rank.

Owns tensors only. Who is placed and who leaves is decided by `residency.py`; what they are for, by `layer.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.lane import Cargo, Lane
from adapters.layout import Place
from adapters.manifest import AdapterId, Graft, Manifest
from adapters.op import LowRank
from native.kernels import Kernels
from native.tables import LowRankPart, PartTable, packed_part_table, part_table


@dataclass(frozen=True, slots=True)
class Part:
    """An adapter at one linear: its low-rank product and, for DoRA, the gain `g [out]` in float32."""

    low: LowRank
    gain: Tensor | None = None


class PackedParts(Mapping[str, Part]):
    """The parts of an adapter without gains, in one allocation. Each is made when it is asked for: compiled kernels ask
    only where they lie, and a request waits for whatever is made for a few hundred tensors."""

    def __init__(self, flat: Tensor, places: Mapping[str, Place], grafts: Sequence[Graft]) -> None:
        self.flat = flat
        self._places, self._grafts = places, grafts
        self._made: dict[str, Part] = {}

    def __getitem__(self, path: str) -> Part:
        if not self._made:
            self._made = {graft.path: self._part(graft) for graft in self._grafts}
        return self._made[path]

    def __iter__(self) -> Iterator[str]:
        return (graft.path for graft in self._grafts)

    def __len__(self) -> int:
        return len(self._grafts)

    def over(self, flat: Tensor) -> "PackedParts":
        """The same over a copy of the allocation."""
        return PackedParts(flat, self._places, self._grafts)

    def table(self, numbers: Mapping[str, int]) -> PartTable:
        """As the kernels read them, by these `numbers` of the linears."""
        places = ((graft, self._places[graft.path]) for graft in self._grafts)
        parts = ((numbers[graft.path], place.a, place.b, place.rank, graft.scaling) for graft, place in places)
        return packed_part_table(self.flat, parts, len(numbers))

    def _part(self, graft: Graft) -> Part:
        place = self._places[graft.path]
        rank, inputs, outputs = place.rank, place.in_features, place.out_features
        a_RI = self.flat[place.a : place.a + rank * inputs].view(rank, inputs)
        b_RO = self.flat[place.b : place.b + rank * outputs].view(rank, outputs)
        return Part(LowRank(a_RI, b_RO, graft.scaling))


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter in memory, ready to be applied.

    `allocations` are the pieces of memory that its tensors lie in, each whole and flat; left out, they are looked for.
    """

    manifest: Manifest
    parts: Mapping[str, Part]
    allocations: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if not self.allocations:
            whole = {tensor.untyped_storage().data_ptr(): _whole(tensor) for tensor in self._tensors()}
            object.__setattr__(self, "allocations", tuple(whole.values()))

    def moved(self, allocations: Sequence[Tensor]) -> "Loaded":
        """The same adapter over copies of its allocations, in the same order."""
        at = {old.data_ptr(): new for old, new in zip(self.allocations, allocations, strict=True)}
        if all(new.data_ptr() == address for address, new in at.items()):
            return self

        if isinstance(self.parts, PackedParts):
            return Loaded(self.manifest, self.parts.over(allocations[0]), tuple(allocations))

        def there(tensor: Tensor) -> Tensor:
            flat = at[tensor.untyped_storage().data_ptr()]
            return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

        def part(one: Part) -> Part:
            low = LowRank(there(one.low.a_RI), there(one.low.b_RO), one.low.scaling)
            return Part(low, None if one.gain is None else there(one.gain))

        return Loaded(self.manifest, {path: part(one) for path, one in self.parts.items()}, tuple(allocations))

    def _tensors(self) -> Iterator[Tensor]:
        for part in self.parts.values():
            yield from (part.low.a_RI, part.low.b_RO)
            if part.gain is not None:
                yield part.gain


def num_bytes(manifest: Manifest, itemsize: int) -> int:
    """What an adapter takes in memory: A and B at `itemsize` bytes an element, DoRA's gains at 4."""
    return sum(
        graft.rank * (graft.in_features + graft.out_features) * itemsize + (4 * graft.out_features if graft.dora else 0)
        for graft in manifest.grafts
    )


class Bank:
    """Adapters on one device, by id. Budgets are kept by whoever calls `place`. `changes` counts what came and went.

    `place` only begins the copy; before its first use, `claim` the adapter on the stream that will use it.
    With `kernels`, each adapter also has a table of its parts in the order of `paths`, all linears it may touch.
    """

    def __init__(
        self,
        device: torch.device,
        kernels: Kernels | None = None,
        paths: Sequence[str] = (),
        lane: Lane | None = None,
    ) -> None:
        self.device = device
        self.kernels = kernels
        self.numbers = {path: number for number, path in enumerate(paths)}
        self.changes = 0
        self._lane = lane or Lane(device)
        self._placed: dict[AdapterId, Loaded] = {}
        self._coming: dict[AdapterId, Cargo] = {}
        self._tables: dict[AdapterId, PartTable] = {}

    def place(self, adapter: Loaded) -> None:
        id, cargo = adapter.manifest.id, self._lane.send(adapter.allocations)
        placed = adapter.moved(cargo.tensors)
        self._placed[id], self._coming[id] = placed, cargo
        self.changes += 1
        if self.kernels is not None:
            self._tables[id] = self._table(placed.parts)

    def _table(self, parts: Mapping[str, Part]) -> PartTable:
        if isinstance(parts, PackedParts):
            return parts.table(self.numbers)
        return part_table({self.numbers[path]: _compiled(part) for path, part in parts.items()}, len(self.numbers))

    def drop(self, adapter: AdapterId) -> None:
        del self._placed[adapter]
        self._coming.pop(adapter, None)
        self.changes += 1
        self._tables.pop(adapter, None)

    def clear(self) -> None:
        """Drop whatever is there."""
        for adapter in list(self._placed):
            self.drop(adapter)

    def claim(self, adapter: AdapterId) -> Loaded:
        """All of `adapter`, which must be placed; work on this stream waits for its copy, if that has not ended."""
        cargo = self._coming.pop(adapter, None)
        if cargo is not None:
            cargo.claim()
        return self._placed[adapter]

    def get(self, adapter: AdapterId) -> Loaded:
        """All of `adapter`, which must be placed. The device may use it once it is claimed."""
        return self._placed[adapter]

    def part(self, adapter: AdapterId, path: str) -> Part | None:
        """What `adapter`, which must be placed, does at the linear `path`."""
        return self.get(adapter).parts.get(path)

    def table(self, adapter: AdapterId) -> PartTable:
        """The parts of `adapter`, which must be placed, as the kernels read them."""
        return self._tables[adapter]

    def __contains__(self, adapter: AdapterId) -> bool:
        return adapter in self._placed

    @property
    def num_bytes(self) -> int:
        """The bytes really held, counted from the tensors."""
        return sum(tensor.nbytes for one in self._placed.values() for tensor in one._tensors())


def _compiled(part: Part) -> LowRankPart:
    return LowRankPart(part.low.a_RI, part.low.b_RO, part.low.scaling, part.gain)


def _whole(tensor: Tensor) -> Tensor:
    """All of the memory that `tensor` is a part of."""
    storage = tensor.untyped_storage()
    return tensor.as_strided((storage.nbytes() // tensor.element_size(),), (1,), 0)
