"""From a checkpoint's file into host memory, in the layout of the bank: one pass that reads, checks and packs.

Owns that layout and the conversion to the base's dtype. Whether the bytes are those that the id stands for is
`identity.py`'s to say; nothing of them is given out before.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import isfinite, prod

import torch
from torch import Tensor

from adapters.bank import Loaded, Part
from adapters.checkpoint import Checkpoint
from adapters.errors import Fault, InvalidAdapter
from adapters.expected import PREFIX
from adapters.header import TensorSpec
from adapters.identity import confirm
from adapters.manifest import Graft
from adapters.op import LowRank
from loader import pages

PILE_BYTES = 1 << 20
_DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


def load(checkpoint: Checkpoint, dtype: torch.dtype, base_weight: Callable[[str], Tensor], pin: bool = False) -> Loaded:
    """Read an adapter into host memory as one allocation in `dtype`, and one for DoRA's gains, page-locked on request.

    `base_weight(path)` is the base's pristine `W [out, in]`, needed for DoRA's gains only. Raises AdapterCorrupt where
    the file holds anything but what the id stands for, and InvalidAdapter where a number is too large for `dtype`, or B
    is once it is scaled: an infinity in one adapter would turn every row of its batch into NaN.
    """
    manifest, packing = checkpoint.manifest, _Packing(checkpoint.tensors, dtype, pin)
    with ThreadPoolExecutor(1) as beside:  # it starts no thread for what is less than a block
        confirm(manifest, checkpoint.weights, checkpoint.tensors, packing, beside)
    largest = packing.largest_magnitude()
    if not isfinite(largest):
        raise _too_large(checkpoint, "some elements are", dtype)
    found = packing.tensors
    gains = torch.empty(sum(graft.out_features for graft in manifest.grafts if graft.dora), pin_memory=pin)
    memory = (packing.flat, gains) if len(gains) else (packing.flat,)
    parts: dict[str, Part] = {}
    done = 0
    for graft in manifest.grafts:
        stem = f"{PREFIX}{graft.path}"
        low, gain = LowRank(found[stem + _A], found[stem + _B], graft.scaling), None
        if graft.dora:
            gain = gains[done : done + graft.out_features]
            gain.copy_(_gain(graft, found[stem + _MAGNITUDE], low, base_weight))
            done += graft.out_features
        parts[graft.path] = Part(low, gain)
    if not _fit_scaled([part.low for part in parts.values()], largest, torch.finfo(dtype).max):
        raise _too_large(checkpoint, "some elements of B, times the adapter's scaling, are", dtype)
    return Loaded(manifest, parts, memory)


def _fit_scaled(parts: Sequence[LowRank], largest: float, limit: float) -> bool:
    """Whether every `s B` is finite, which is what a stage holds. Looks at each only where `largest` leaves it open."""
    if largest * max(abs(low.scaling) for low in parts) <= limit:
        return True
    return all(float(low.b_RO.abs().max()) * abs(low.scaling) <= limit for low in parts)


def _too_large(checkpoint: Checkpoint, what: str, dtype: torch.dtype) -> InvalidAdapter:
    problem = f"{what} too large for {dtype}, in which this base is served"
    return InvalidAdapter([Fault(str(checkpoint.weights.name), problem, "Serve the base in bfloat16 or float32")])


class _Packing:
    """An inspection for `identity.digest` that keeps what it sees: `A [rank, in]`, `B [rank, out]` transposed.

    Tensors of one shape lie side by side and are converted together: an adapter has hundreds, most of them so small
    that a call costs more than its bytes do.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], dtype: torch.dtype, pin: bool) -> None:
        self._piles: dict[str, _Pile] = {}
        self.tensors: dict[str, Tensor] = {}
        begun, alike = 0, _alike(specs)
        total = sum(len(names) * prod(shape) for (_, shape, suffix), names in alike.items() if suffix != _MAGNITUDE)
        self.flat = torch.empty(total, dtype=dtype, pin_memory=True) if pin else pages.empty(total, dtype)
        for (stored, shape, suffix), names in alike.items():
            if suffix == _MAGNITUDE:
                pile_NX = as_filed = torch.empty(len(names), *shape)
            else:
                laid = shape if suffix == _A else shape[::-1]
                size = len(names) * prod(shape)
                pile_NX = self.flat[begun : begun + size].view(len(names), *laid)
                as_filed = pile_NX if suffix == _A else pile_NX.transpose(1, 2)
                begun += size
            self.tensors.update(zip(names, pile_NX.unbind(), strict=True))
            self._piles.update(dict.fromkeys(names, _Pile(as_filed, _DTYPES[stored])))

    def __call__(self, name: str, spec: TensorSpec, chunk: bytes) -> None:
        self._piles[name].add(chunk)

    def largest_magnitude(self) -> float:
        """Of A and B; infinite or NaN where one is. The extremes tell it, at a twentieth of what `isfinite` takes."""
        lowest, highest = (float(extreme) for extreme in self.flat.aminmax())
        return max(-lowest, highest)


class _Pile:
    """Tensors of one shape and type, filled in the order of their bytes. `as_filed` is indexed as a file holds them."""

    def __init__(self, as_filed: Tensor, stored: torch.dtype) -> None:
        self._as_filed, self._stored = as_filed, stored
        self._count, self._each = len(as_filed), as_filed[0].numel() * stored.itemsize
        self._done = 0
        self._held: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> None:
        self._held.append(chunk)
        self._size += len(chunk)
        whole, torn = divmod(self._size, self._each)
        if not torn and (self._size >= PILE_BYTES or self._done + whole == self._count):
            self._convert(whole)

    def _convert(self, count: int) -> None:
        """In steps that torch does quickly each: float16 goes by way of float32, and what is smaller is transposed."""
        read = torch.frombuffer(bytearray().join(self._held), dtype=self._stored)
        read = (read.float() if self._stored is torch.float16 else read).to(self._as_filed.dtype)
        self._as_filed[self._done : self._done + count].copy_(read.view(count, *self._as_filed.shape[1:]))
        self._done += count
        self._held, self._size = [], 0


def _alike(specs: Mapping[str, TensorSpec]) -> dict[tuple[str, tuple[int, ...], str], list[str]]:
    """The tensors' names by type, shape and what they are, each list in the order in which they are read."""
    found: dict[tuple[str, tuple[int, ...], str], list[str]] = {}
    for name in sorted(specs):
        spec = specs[name]
        suffix = _A if name.endswith(_A) else _B if name.endswith(_B) else _MAGNITUDE
        found.setdefault((spec.dtype, spec.shape, suffix), []).append(name)
    return found


def _gain(graft: Graft, magnitude: Tensor, low: LowRank, base_weight: Callable[[str], Tensor]) -> Tensor:
    """`g = m / ||W + s BA||`, the norm taken over each output's row (DoRA, arXiv 2402.09353, section 4.3)."""
    adapted = base_weight(graft.path).float().cpu()
    adapted = torch.addmm(adapted, low.b_RO.float().t(), low.a_RI.float(), alpha=low.scaling)
    gain: Tensor = magnitude / torch.linalg.vector_norm(adapted, dim=1)
    return gain
