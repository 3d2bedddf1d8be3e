"""From a checkpoint's file into host memory, in the layout of the bank: one pass that reads, checks and packs.

Owns that layout and the conversion to the base's dtype. Whether the bytes are those that the id stands for is
`identity.py`'s to say; nothing of them is given out before.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from math import inf, isfinite

import torch
from torch import Tensor

from adapters.bank import Loaded, PackedParts, Part
from adapters.checkpoint import Checkpoint
from adapters.errors import Fault, InvalidAdapter
from adapters.expected import FACTOR_A, MAGNITUDE, PREFIX
from adapters.header import read_into
from adapters.identity import HANDED_BYTES, Digest, damaged
from adapters.layout import Layout, Piece, lay_out
from adapters.manifest import Graft
from adapters.op import LowRank
from loader import pages

KEPT_BYTES = 8 << 20
_DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Scratch(threading.local):
    """Memory in which a thread's loads read and convert, one after the other: the system gives fresh memory page by
    page, which takes longer than filling it."""

    def __init__(self) -> None:
        self._kept: dict[torch.dtype, Tensor] = {}

    def of(self, count: int, dtype: torch.dtype) -> Tensor:
        """`count` numbers, whose memory the next call with this dtype gives again; not so for what is very large."""
        kept = self._kept.get(dtype)
        if kept is not None and len(kept) >= count:
            return kept[:count]
        made = torch.empty(count, dtype=dtype)
        if made.nbytes <= KEPT_BYTES:
            self._kept[dtype] = made
        return made


def load(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    base_weight: Callable[[str], Tensor],
    pin: bool = False,
    beside: Executor | None = None,
    scratch: Scratch | None = None,
) -> Loaded:
    """Read an adapter into host memory as one allocation in `dtype`, and one for DoRA's gains, page-locked on request.

    `base_weight(path)` is the base's pristine `W [out, in]`, needed for DoRA's gains only. `beside`, if given, computes
    the digest while this thread packs. Raises AdapterCorrupt where the file holds anything but what the id stands for,
    and InvalidAdapter where a number is too large for `dtype`, or B is once it is scaled: an infinity in one adapter
    would turn every row of its batch into NaN.
    """
    manifest, layout = checkpoint.manifest, checkpoint.layout or lay_out(checkpoint.tensors)
    scratch = scratch or Scratch()
    if sum(piece.stop - piece.start for piece in layout.pieces) < HANDED_BYTES:
        beside = None  # it is hashed at once, while it is in the processor's cache
    packing, digest = _Packing(layout, dtype, pin, scratch), Digest(manifest.kind, manifest.grafts, beside)
    try:
        _read(checkpoint, layout, packing, digest, scratch)
    except InvalidAdapter as error:
        raise damaged(manifest.id) from error
    if digest.id() != manifest.id:
        raise damaged(manifest.id)
    packed, largest = PackedParts(packing.flat, layout.places, manifest.grafts), packing.largest_magnitude()
    if not isfinite(largest):
        raise _too_large(checkpoint, "some elements are", dtype)
    if not _fit_scaled(packed, manifest.grafts, largest, torch.finfo(dtype).max):
        raise _too_large(checkpoint, "some elements of B, times the adapter's scaling, are", dtype)
    gains = torch.empty(sum(graft.out_features for graft in manifest.grafts if graft.dora), pin_memory=pin)
    if not len(gains):
        return Loaded(manifest, packed, (packing.flat,))
    parts: dict[str, Part] = {}
    done = 0
    for graft in manifest.grafts:
        low, gain = packed[graft.path].low, None
        if graft.dora:
            gain = gains[done : done + graft.out_features]
            gain.copy_(_gain(graft, packing.magnitude(graft), low, base_weight))
            done += graft.out_features
        parts[graft.path] = Part(low, gain)
    return Loaded(manifest, parts, (packing.flat, gains))


def _read(checkpoint: Checkpoint, layout: Layout, packing: "_Packing", digest: Digest, scratch: Scratch) -> None:
    """Raises InvalidAdapter when the file is shorter than its tensors."""
    with checkpoint.weights.open("rb", buffering=0) as file:
        for piece in layout.pieces:
            content = scratch.of(piece.stop - piece.start, torch.uint8)
            view = content.numpy().data
            read_into(file, piece.start, view)
            digest.update(piece.hashed(view))
            packing.take(piece, content)


def _fit_scaled(parts: Mapping[str, Part], grafts: Sequence[Graft], largest: float, limit: float) -> bool:
    """Whether every `s B` is finite, which is what a stage holds. Looks at each only where `largest` leaves it open."""
    if largest * max(abs(graft.scaling) for graft in grafts) <= limit:
        return True
    return all(float(part.low.b_RO.abs().max()) * abs(part.low.scaling) <= limit for part in parts.values())


def _too_large(checkpoint: Checkpoint, what: str, dtype: torch.dtype) -> InvalidAdapter:
    problem = f"{what} too large for {dtype}, in which this base is served"
    return InvalidAdapter([Fault(str(checkpoint.weights.name), problem, "Serve the base in bfloat16 or float32")])


class _Packing:
    """An adapter's tensors side by side in `flat`, group by group: `A [rank, in]`, `B [rank, out]` transposed.

    An adapter has hundreds of tensors, most of them so small that a call costs more than its bytes do. So a piece is
    converted as a whole, and a run of tensors is put in its place as one.
    """

    def __init__(self, layout: Layout, dtype: torch.dtype, pin: bool, scratch: Scratch) -> None:
        self._dtype, self._scratch = dtype, scratch
        self._as_filed: list[Tensor] = []  # by the number of the group: [N, ...], indexed as a file holds them
        self._magnitudes: dict[str, Tensor] = {}
        self._extremes: list[Tensor] = []
        size = layout.elements
        self.flat = torch.empty(size, dtype=dtype, pin_memory=True) if pin else pages.empty(size, dtype)
        for (group, names), begin in zip(layout.groups.items(), layout.begins, strict=True):
            if group.suffix == MAGNITUDE:
                as_filed = torch.empty(len(names), *group.shape)
                self._magnitudes.update(zip(names, as_filed.unbind(), strict=True))
            else:
                rows, columns = group.shape
                strides = (columns, 1) if group.suffix == FACTOR_A else (1, rows)
                as_filed = self.flat.as_strided((len(names), rows, columns), (rows * columns, *strides), begin)
            self._as_filed.append(as_filed)

    def take(self, piece: Piece, content: Tensor) -> None:
        stored = content.view(_DTYPES[piece.dtype])
        converted = self._converted(stored)
        if not self._magnitudes:
            self._extremes += converted.aminmax()
        for run in piece.runs:
            place = self._as_filed[run.group]
            source = converted if place.dtype is self._dtype else stored
            each, size = place.shape[1:], stored.itemsize
            strides = (run.step // size, *((each[1], 1) if len(each) == 2 else (1,)))
            tensors = source.as_strided((run.count, *each), strides, run.begin // size)
            place[run.first : run.first + run.count].copy_(tensors)

    def _converted(self, stored: Tensor) -> Tensor:
        """In steps that torch does quickly each: float16 goes by way of float32, and what is smaller is transposed."""
        for dtype in (torch.float32, self._dtype) if stored.dtype is torch.float16 else (self._dtype,):
            if stored.dtype not in (dtype, self._dtype):
                stored = self._scratch.of(len(stored), dtype).copy_(stored)
        return stored

    def magnitude(self, graft: Graft) -> Tensor:
        return self._magnitudes[f"{PREFIX}{graft.path}{MAGNITUDE}"]

    def largest_magnitude(self) -> float:
        """Of A and B; infinite where one is, or is no number. The extremes of a piece tell it, at a twentieth of what
        `isfinite` takes; where magnitudes lie among them, those of everything that was packed."""
        extremes = [float(one) for one in (self.flat.aminmax() if self._magnitudes else self._extremes)]
        return max(map(abs, extremes)) if all(map(isfinite, extremes)) else inf


def _gain(graft: Graft, magnitude: Tensor, low: LowRank, base_weight: Callable[[str], Tensor]) -> Tensor:
    """`g = m / ||W + s BA||`, the norm taken over each output's row (DoRA, arXiv 2402.09353, section 4.3)."""
    adapted = base_weight(graft.path).float().cpu()
    adapted = torch.addmm(adapted, low.b_RO.float().t(), low.a_RI.float(), alpha=low.scaling)
    gain: Tensor = magnitude / torch.linalg.vector_norm(adapted, dim=1)
    return gain
