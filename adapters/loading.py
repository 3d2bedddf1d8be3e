"""From a checkpoint's file into host memory, in the layout of the bank: one pass that reads, checks and packs.

Owns that layout and the conversion to the base's dtype. Whether the bytes are those that the id stands for is
`identity.py`'s to say; nothing of them is given out before.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from math import inf, isfinite

import torch
from torch import Tensor

from adapters.bank import Loaded, PackedParts, Part
from adapters.checkpoint import Checkpoint
from adapters.errors import Fault, InvalidAdapter
from adapters.expected import FACTOR_A, MAGNITUDE, PREFIX
from adapters.header import AHEAD_BYTES, read_into, will_read
from adapters.identity import HANDED_BYTES, Digest, damaged
from adapters.layout import Layout, Piece, Run, lay_out
from adapters.manifest import AdapterId, Graft, Manifest
from adapters.op import LowRank
from loader import pages
from native.kernels import Kernels
from native.tables import DTYPE, Move

KEPT_BYTES = 8 << 20
KEPT_FOR_OTHERS_BYTES = 128 << 20
"""What is kept for the next ones of the memory of large adapters that have left."""
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


@dataclass(frozen=True, slots=True)
class Loader:
    """Reads adapters into host memory, each as one allocation in `dtype`, and one for DoRA's gains.

    `base_weight(path)` is the base's pristine `W [out, in]`, needed for DoRA's gains only. With `pin` the memory is
    page-locked. `beside`, if given, computes the digest of a large adapter while the calling thread packs it; `kernels`
    pack what is in their dtype. Keeps memory from one load to the next. Safe to use from many threads.
    """

    dtype: torch.dtype
    base_weight: Callable[[str], Tensor]
    pin: bool = False
    beside: Executor | None = None
    kernels: Kernels | None = None
    scratch: Scratch = field(default_factory=Scratch)
    memory: pages.Pool = field(default_factory=lambda: pages.Pool(KEPT_FOR_OTHERS_BYTES))

    def load(self, checkpoint: Checkpoint) -> Loaded:
        """Raises AdapterCorrupt where the file holds anything but what the id stands for.

        Raises InvalidAdapter where a number is too large for `dtype`, or B is once it is scaled: an infinity in one
        adapter would turn every row of its batch into NaN.
        """
        manifest, layout = checkpoint.manifest, checkpoint.layout or lay_out(checkpoint.tensors)
        packing = _Packing(layout, self)
        try:
            found = self._read(checkpoint, layout, packing)
        except InvalidAdapter as error:
            raise damaged(manifest.id) from error
        if found != manifest.id:
            raise damaged(manifest.id)
        packed, largest = PackedParts(packing.flat, layout.places, manifest.grafts), packing.largest_magnitude()
        if not isfinite(largest):
            raise self._too_large(checkpoint, "some elements are")
        if not _fit_scaled(packed, manifest.grafts, largest, torch.finfo(self.dtype).max):
            raise self._too_large(checkpoint, "some elements of B, times the adapter's scaling, are")
        if not any(graft.dora for graft in manifest.grafts):
            return Loaded(manifest, packed, (packing.flat,))
        return self._with_gains(manifest, packed, packing)

    def _read(self, checkpoint: Checkpoint, layout: Layout, packing: "_Packing") -> AdapterId:
        """Pack what the file holds; returns the id of just that. Raises InvalidAdapter when the file is too short."""
        size = sum(piece.stop - piece.start for piece in layout.pieces)
        beside = None if size < HANDED_BYTES else self.beside  # little is hashed at once, in the processor's cache
        digest = Digest(checkpoint.manifest.kind, checkpoint.manifest.grafts, beside)
        later = deque(piece for piece in layout.pieces if piece.stop > AHEAD_BYTES)  # the disk was asked for the others
        ahead = AHEAD_BYTES
        with checkpoint.weights.open("rb", buffering=0) as file:
            for piece in layout.pieces:
                if later and later[0] is piece:
                    later.popleft()
                while later and ahead < AHEAD_BYTES:
                    asked = later.popleft()
                    will_read(file, asked.start, asked.stop)
                    ahead += asked.stop - asked.start
                content = self.scratch.of(piece.stop - piece.start, torch.uint8)
                view = content.numpy().data
                read_into(file, piece.start, view)
                ahead -= len(view)
                digest.update(piece.hashed(view))
                packing.take(piece, content)
        return digest.id()

    def _with_gains(self, manifest: Manifest, packed: PackedParts, packing: "_Packing") -> Loaded:
        gains = torch.empty(sum(graft.out_features for graft in manifest.grafts if graft.dora), pin_memory=self.pin)
        parts: dict[str, Part] = {}
        done = 0
        for graft in manifest.grafts:
            low, gain = packed[graft.path].low, None
            if graft.dora:
                gain = gains[done : done + graft.out_features]
                gain.copy_(_gain(graft, packing.magnitude(graft), low, self.base_weight))
                done += graft.out_features
            parts[graft.path] = Part(low, gain)
        return Loaded(manifest, parts, (packing.flat, gains))

    def _too_large(self, checkpoint: Checkpoint, what: str) -> InvalidAdapter:
        problem = f"{what} too large for {self.dtype}, in which this base is served"
        return InvalidAdapter([Fault(str(checkpoint.weights.name), problem, "Serve the base in bfloat16 or float32")])


def _fit_scaled(parts: Mapping[str, Part], grafts: Sequence[Graft], largest: float, limit: float) -> bool:
    """Whether every `s B` is finite, which is what a stage holds. Looks at each only where `largest` leaves it open."""
    if largest * max(abs(graft.scaling) for graft in grafts) <= limit:
        return True
    return all(float(part.low.b_RO.abs().max()) * abs(part.low.scaling) <= limit for part in parts.values())


class _Packing:
    """An adapter's tensors side by side in `flat`, group by group: `A [rank, in]`, `B [rank, out]` transposed.

    An adapter has hundreds of tensors, most of them so small that a call costs more than its bytes do. So a piece is
    converted as a whole, and a run of tensors is put in its place as one.
    """

    def __init__(self, layout: Layout, loader: Loader) -> None:
        self._layout, self._dtype, self._scratch = layout, loader.dtype, loader.scratch
        self._kernels = loader.kernels if self._dtype is DTYPE else None
        self._as_filed: list[Tensor] = []  # by the number of the group: [N, ...], indexed as a file holds them
        self._magnitudes: dict[str, Tensor] = {}
        self._extremes: list[float] = []
        size, dtype = layout.elements, loader.dtype
        self.flat = torch.empty(size, dtype=dtype, pin_memory=True) if loader.pin else loader.memory.empty(size, dtype)
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
        factors = [run for run in piece.runs if self._as_filed[run.group].dim() == 3]
        if self._kernels is not None:
            moves = [self._move(run, stored.itemsize) for run in factors]
            self._extremes.append(self._kernels.pack(stored, moves, self.flat))
        elif factors:
            converted = self._converted(stored)
            if not self._magnitudes:
                self._extremes += map(float, converted.aminmax())
            for run in factors:
                self._copy(run, converted, stored.itemsize)
        for run in piece.runs:
            if self._as_filed[run.group].dim() < 3:
                self._copy(run, stored, stored.itemsize)

    def _move(self, run: Run, itemsize: int) -> Move:
        """A run of A or B, for the kernel."""
        rows, columns = self._as_filed[run.group].shape[1:]
        to = self._layout.begins[run.group] + run.first * rows * columns
        transposed = self._as_filed[run.group].stride(1) == 1
        return Move(run.begin // itemsize, run.step // itemsize, to, run.count, rows, columns, transposed)

    def _copy(self, run: Run, source: Tensor, itemsize: int) -> None:
        """A run of anything, by torch, from the numbers of a piece in which each took `itemsize` bytes."""
        place = self._as_filed[run.group]
        each = place.shape[1:]
        strides = (run.step // itemsize, *((each[1], 1) if len(each) == 2 else (1,)))
        tensors = source.as_strided((run.count, *each), strides, run.begin // itemsize)
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
        `isfinite` takes; where torch has packed and magnitudes lie among them, those of everything that was packed."""
        extremes = self._extremes or [float(one) for one in self.flat.aminmax()]
        return max(map(abs, extremes)) if all(map(isfinite, extremes)) else inf


def _gain(graft: Graft, magnitude: Tensor, low: LowRank, base_weight: Callable[[str], Tensor]) -> Tensor:
    """`g = m / ||W + s BA||`, the norm taken over each output's row (DoRA, arXiv 2402.09353, section 4.3)."""
    adapted = base_weight(graft.path).float().cpu()
    adapted = torch.addmm(adapted, low.b_RO.float().t(), low.a_RI.float(), alpha=low.scaling)
    gain: Tensor = magnitude / torch.linalg.vector_norm(adapted, dim=1)
    return gain
