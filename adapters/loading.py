"""From a checkpoint's file into host memory, in the layout of the bank: one pass that reads, checks and packs.

Owns that layout and the conversion to the base's dtype. Whether the bytes are those that the id stands for is
`identity.py`'s to say; nothing of them is given out before.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from math import isfinite, prod

import torch
from torch import Tensor

from adapters.bank import Loaded, Part
from adapters.checkpoint import Checkpoint
from adapters.errors import Fault, InvalidAdapter
from adapters.expected import PREFIX
from adapters.header import read_into
from adapters.identity import Digest, damaged
from adapters.layout import FACTOR_A, FACTOR_B, MAGNITUDE, Layout, Piece, lay_out
from adapters.manifest import Graft, Manifest
from adapters.op import LowRank
from loader import pages

_DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    base_weight: Callable[[str], Tensor],
    pin: bool = False,
    beside: Executor | None = None,
) -> Loaded:
    """Read an adapter into host memory as one allocation in `dtype`, and one for DoRA's gains, page-locked on request.

    `base_weight(path)` is the base's pristine `W [out, in]`, needed for DoRA's gains only. `beside`, if given, computes
    the digest while this thread packs. Raises AdapterCorrupt where the file holds anything but what the id stands for,
    and InvalidAdapter where a number is too large for `dtype`, or B is once it is scaled: an infinity in one adapter
    would turn every row of its batch into NaN.
    """
    manifest, layout = checkpoint.manifest, checkpoint.layout or lay_out(checkpoint.tensors)
    packing, digest = _Packing(layout, dtype, pin), Digest(manifest.kind, manifest.grafts, beside)
    try:
        _read(checkpoint, layout, packing, digest)
    except InvalidAdapter as error:
        raise damaged(manifest.id) from error
    lows, largest = packing.low_ranks(manifest), packing.largest_magnitude()  # while the last bytes are hashed
    if digest.id() != manifest.id:
        raise damaged(manifest.id)
    if not isfinite(largest):
        raise _too_large(checkpoint, "some elements are", dtype)
    if not _fit_scaled(lows.values(), largest, torch.finfo(dtype).max):
        raise _too_large(checkpoint, "some elements of B, times the adapter's scaling, are", dtype)
    gains = torch.empty(sum(graft.out_features for graft in manifest.grafts if graft.dora), pin_memory=pin)
    parts: dict[str, Part] = {}
    done = 0
    for graft in manifest.grafts:
        low, gain = lows[graft.path], None
        if graft.dora:
            gain = gains[done : done + graft.out_features]
            gain.copy_(_gain(graft, packing.magnitude(graft), low, base_weight))
            done += graft.out_features
        parts[graft.path] = Part(low, gain)
    return Loaded(manifest, parts, (packing.flat, gains) if done else (packing.flat,))


def _read(checkpoint: Checkpoint, layout: Layout, packing: "_Packing", digest: Digest) -> None:
    """Raises InvalidAdapter when the file is shorter than its tensors."""
    with checkpoint.weights.open("rb", buffering=0) as file:
        for piece in layout.pieces:
            content = torch.empty(piece.stop - piece.start, dtype=torch.uint8)
            view = content.numpy().data
            read_into(file, piece.start, view)
            digest.update(piece.hashed(view))
            packing.take(piece, content)


def _fit_scaled(lows: Collection[LowRank], largest: float, limit: float) -> bool:
    """Whether every `s B` is finite, which is what a stage holds. Looks at each only where `largest` leaves it open."""
    if largest * max(abs(low.scaling) for low in lows) <= limit:
        return True
    return all(float(low.b_RO.abs().max()) * abs(low.scaling) <= limit for low in lows)


def _too_large(checkpoint: Checkpoint, what: str, dtype: torch.dtype) -> InvalidAdapter:
    problem = f"{what} too large for {dtype}, in which this base is served"
    return InvalidAdapter([Fault(str(checkpoint.weights.name), problem, "Serve the base in bfloat16 or float32")])


class _Packing:
    """An adapter's tensors side by side in `flat`, group by group: `A [rank, in]`, `B [rank, out]` transposed.

    An adapter has hundreds of tensors, most of them so small that a call costs more than its bytes do. So a piece is
    converted as a whole, and a run of tensors is put in its place as one.
    """

    def __init__(self, layout: Layout, dtype: torch.dtype, pin: bool) -> None:
        self._dtype = dtype
        self._as_filed: list[Tensor] = []  # by the number of the group: [N, ...], indexed as a file holds them
        self._tensors: dict[str, Tensor] = {}
        sizes = [
            0 if group.suffix == MAGNITUDE else len(names) * prod(group.shape) for group, names in layout.groups.items()
        ]
        self.flat = torch.empty(sum(sizes), dtype=dtype, pin_memory=True) if pin else pages.empty(sum(sizes), dtype)
        begun = 0
        for (group, names), size in zip(layout.groups.items(), sizes, strict=True):
            if group.suffix == MAGNITUDE:
                laid_NX = as_filed = torch.empty(len(names), *group.shape)
            else:
                laid = group.shape if group.suffix == FACTOR_A else group.shape[::-1]
                laid_NX = self.flat[begun : begun + size].view(len(names), *laid)
                as_filed = laid_NX if group.suffix == FACTOR_A else laid_NX.transpose(1, 2)
                begun += size
            self._as_filed.append(as_filed)
            self._tensors.update(zip(names, laid_NX.unbind(), strict=True))

    def take(self, piece: Piece, content: Tensor) -> None:
        """In steps that torch does quickly each: float16 goes by way of float32, and what is smaller is transposed."""
        stored = content.view(_DTYPES[piece.dtype])
        wide = stored.float() if stored.dtype is torch.float16 and self._dtype is not torch.float16 else stored
        converted = wide.to(self._dtype)
        for run in piece.runs:
            place = self._as_filed[run.group]
            source = stored if place.dtype is not self._dtype else converted
            each = place[0].shape
            within = (each[1], 1) if len(each) == 2 else (1,)
            tensors = source.as_strided(
                (run.count, *each), (run.step // stored.itemsize, *within), run.begin // stored.itemsize
            )
            place[run.first : run.first + run.count].copy_(tensors)

    def low_ranks(self, manifest: Manifest) -> dict[str, LowRank]:
        """The factors by path, in the manifest's order."""
        found = self._tensors
        return {
            graft.path: LowRank(
                found[f"{PREFIX}{graft.path}{FACTOR_A}"], found[f"{PREFIX}{graft.path}{FACTOR_B}"], graft.scaling
            )
            for graft in manifest.grafts
        }

    def magnitude(self, graft: Graft) -> Tensor:
        return self._tensors[f"{PREFIX}{graft.path}{MAGNITUDE}"]

    def largest_magnitude(self) -> float:
        """Of A and B; infinite or NaN where one is. The extremes tell it, at a twentieth of what `isfinite` takes."""
        lowest, highest = (float(extreme) for extreme in self.flat.aminmax())
        return max(-lowest, highest)


def _gain(graft: Graft, magnitude: Tensor, low: LowRank, base_weight: Callable[[str], Tensor]) -> Tensor:
    """`g = m / ||W + s BA||`, the norm taken over each output's row (DoRA, arXiv 2402.09353, section 4.3)."""
    adapted = base_weight(graft.path).float().cpu()
    adapted = torch.addmm(adapted, low.b_RO.float().t(), low.a_RI.float(), alpha=low.scaling)
    gain: Tensor = magnitude / torch.linalg.vector_norm(adapted, dim=1)
    return gain
