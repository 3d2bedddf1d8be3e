"""The device tier's contents: every placed adapter's tensors, at their true rank.

Owns tensors only. Who is placed and who leaves is decided by `residency.py`; what they are for, by `layer.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from adapters.checkpoint import Checkpoint
from adapters.errors import Fault, InvalidAdapter
from adapters.lane import Cargo, Lane
from adapters.manifest import AdapterId, Graft, Manifest
from adapters.op import LowRank
from native.kernels import Kernels
from native.tables import LowRankPart, PartTable, part_table

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Part:
    """An adapter at one linear: its low-rank product and, for DoRA, the gain `g [out]` in float32."""

    low: LowRank
    gain: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter in memory, ready to be applied."""

    manifest: Manifest
    parts: dict[str, Part]

    def allocations(self) -> list[Tensor]:
        """The pieces of memory its tensors lie in, each whole and flat."""
        return list({tensor.untyped_storage().data_ptr(): _whole(tensor) for tensor in self._tensors()}.values())

    def moved(self, allocations: Sequence[Tensor]) -> "Loaded":
        """The same adapter over copies of its allocations, in the same order."""
        at = {old.data_ptr(): new for old, new in zip(self.allocations(), allocations, strict=True)}
        if all(new.data_ptr() == address for address, new in at.items()):
            return self

        def there(tensor: Tensor) -> Tensor:
            flat = at[tensor.untyped_storage().data_ptr()]
            return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

        def part(one: Part) -> Part:
            low = LowRank(there(one.low.a_RI), there(one.low.b_RO), one.low.scaling)
            return Part(low, None if one.gain is None else there(one.gain))

        return Loaded(self.manifest, {path: part(one) for path, one in self.parts.items()})

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


def load(checkpoint: Checkpoint, dtype: torch.dtype, base_weight: Callable[[str], Tensor], pin: bool = False) -> Loaded:
    """Read an adapter into host memory as one allocation in `dtype`, and one for DoRA's gains, page-locked on request.

    `base_weight(path)` is the base's pristine `W [out, in]`, needed for DoRA's gains only. Raises InvalidAdapter
    where a number is too large for `dtype`: an infinity in one adapter would turn every row of its batch into NaN.
    """
    manifest = checkpoint.manifest
    total = sum(graft.rank * (graft.in_features + graft.out_features) for graft in manifest.grafts)
    flat = torch.empty(total, dtype=dtype, pin_memory=pin)
    gains = torch.empty(sum(graft.out_features for graft in manifest.grafts if graft.dora), pin_memory=pin)
    parts: dict[str, Part] = {}
    offset = done = 0
    with safe_open(checkpoint.weights, framework="pt") as file:
        for graft in manifest.grafts:
            name = f"{PREFIX}{graft.path}"
            a, b_t = file.get_tensor(f"{name}.lora_A.weight"), file.get_tensor(f"{name}.lora_B.weight").t()
            low = LowRank(_store(flat, offset, a), _store(flat, offset + a.numel(), b_t), graft.scaling)
            offset += a.numel() + b_t.numel()
            gain = None
            if graft.dora:
                magnitude = file.get_tensor(f"{name}.lora_magnitude_vector")
                gain = _store(gains, done, _gain(graft, magnitude, low, base_weight))
                done += graft.out_features
            parts[graft.path] = Part(low, gain)
    if not flat.isfinite().all():
        problem = f"some elements are too large for {dtype}, in which this base is served"
        raise InvalidAdapter([Fault(str(checkpoint.weights.name), problem, "Serve the base in bfloat16 or float32")])
    return Loaded(manifest, parts)


class Bank:
    """Adapters on one device, by id. Budgets are kept by whoever calls `place`. `changes` counts what came and went.

    `place` only begins the copy; whoever asks for the adapter here gets it for use on the stream they ask from.
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
        id, cargo = adapter.manifest.id, self._lane.send(adapter.allocations())
        placed = adapter.moved(cargo.tensors)
        self._placed[id], self._coming[id] = placed, cargo
        self.changes += 1
        if self.kernels is not None:
            parts = {self.numbers[path]: _compiled(part) for path, part in placed.parts.items()}
            self._tables[id] = part_table(parts, len(self.numbers))

    def drop(self, adapter: AdapterId) -> None:
        del self._placed[adapter]
        self._coming.pop(adapter, None)
        self.changes += 1
        self._tables.pop(adapter, None)

    def clear(self) -> None:
        """Drop whatever is there."""
        for adapter in list(self._placed):
            self.drop(adapter)

    def get(self, adapter: AdapterId) -> Loaded:
        """All of `adapter`, which must be placed."""
        cargo = self._coming.pop(adapter, None)
        if cargo is not None:
            cargo.claim()
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


def _store(flat: Tensor, offset: int, tensor: Tensor) -> Tensor:
    view = flat[offset : offset + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    return view


def _gain(graft: Graft, magnitude: Tensor, low: LowRank, base_weight: Callable[[str], Tensor]) -> Tensor:
    """`g = m / ||W + s BA||`, the norm taken over each output's row (DoRA, arXiv 2402.09353, section 4.3)."""
    adapted = base_weight(graft.path).float().cpu()
    adapted = torch.addmm(adapted, low.b_RO.float().t(), low.a_RI.float(), alpha=low.scaling)
    gain: Tensor = magnitude.float() / torch.linalg.vector_norm(adapted, dim=1)
    return gain


def _whole(tensor: Tensor) -> Tensor:
    """All of the memory that `tensor` is a part of."""
    storage = tensor.untyped_storage()
    return tensor.as_strided((storage.nbytes() // tensor.element_size(),), (1,), 0)
