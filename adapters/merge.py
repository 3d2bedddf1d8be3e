"""Folding an adapter into weights: for a while, beside the resident base, or for good, in a checkpoint.

Owns `W' = g * (W + s B A)`. Never changes a resident weight: merged layers stand beside the pristine ones, so that
the base and other adapters are served from the very weights they always were, and unmerging has nothing to restore.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.bank import Loaded, Part
from adapters.checkpoint import Checkpoint
from adapters.errors import Fault, InvalidAdapter
from adapters.layer import GraftedLinear
from adapters.loading import Loader
from loader import pages
from loader.base import Base, quiet
from loader.errors import DoesNotFit
from loader.memory import available_host_bytes, format_bytes
from loader.product import dense_linear


def fold(weight_OI: Tensor, part: Part) -> Tensor:
    """`g * (W + s B A)` in float32, rounded once to W's dtype."""
    folded = torch.addmm(weight_OI.float(), part.low.b_RO.float().t(), part.low.a_RI.float(), alpha=part.low.scaling)
    if part.gain is not None:
        folded = folded * part.gain[:, None]
    return folded.to(weight_OI.dtype)


class Merger:
    """Stands merged linears beside the pristine ones, and takes them away again."""

    def __init__(self, base: Base, linears: Mapping[str, GraftedLinear]) -> None:
        self._base = base
        self._linears = linears

    def merge(self, adapter: Loaded) -> None:
        """Serve `adapter` from weights of its own. Raises DoesNotFit, with numbers, before anything changes.

        Raises InvalidAdapter where a merged weight overflows the base's precision.
        """
        self._check_room(adapter)
        weights = [_folded(self._base, path, part) for path, part in adapter.parts.items()]
        if self._base.device.type == "cpu":
            pages.gather(weights)
        for path, weight in zip(adapter.parts, weights, strict=True):
            linear = self._linears[path]
            linear.merged = dense_linear(weight, linear.bias, self._base.kernels)

    def unmerge(self) -> None:
        """Let every row take the pristine weights, which have been there all along."""
        for linear in self._linears.values():
            linear.merged = None

    def _check_room(self, adapter: Loaded) -> None:
        itemsize = self._base.dtype.itemsize
        needed = sum(graft.in_features * graft.out_features * itemsize for graft in adapter.manifest.grafts)
        available = _available_bytes(self._base.device)
        if available is not None and needed > available:
            raise DoesNotFit(
                f"Merging this adapter takes {format_bytes(needed)} for its {len(adapter.parts)} dense layers, but "
                f"{format_bytes(available)} are free. Serve it unmerged, or lower the KV and adapter budgets.",
                needed=needed,
                available=available,
            )


def write_merged(base: Base, checkpoint: Checkpoint, out: Path) -> None:
    """Write `base` with the adapter folded in as a directory that stock transformers loads. Appears by rename.

    Raises InvalidAdapter where a merged weight overflows the base's precision. A head that shares the
    embedding's weight gets its own copy when the adapter touches it.
    """
    adapter = Loader(torch.float32, base.weight).load(checkpoint)
    model = base.model
    for path, part in adapter.parts.items():
        module = base.linears[path]
        folded = nn.Parameter(_folded(base, path, part), requires_grad=False)
        if path == base.head and model.config.tie_word_embeddings:
            model.config.tie_word_embeddings = False
        module.weight = folded
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with quiet():
            model.save_pretrained(partial)
        base.tokenizer.save_pretrained(partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _folded(base: Base, path: str, part: Part) -> Tensor:
    folded = fold(base.weight(path), part)
    if not folded.isfinite().all():
        fix = "Serve this adapter unmerged, or the base in bfloat16"
        raise InvalidAdapter([Fault(path, "the merged weight overflows the base's precision", fix)])
    return folded


def _available_bytes(device: torch.device) -> int | None:
    """Free memory where merged weights would live, None if the system does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_host_bytes()
