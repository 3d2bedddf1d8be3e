"""An adapter read by itself, without the base it belongs to: which id a server would give it, if it takes it.

Owns the shape that a file implies. It says nothing of whether a base can carry the adapter; a client asks by the id
whether a server has the content already.
"""

import re
from pathlib import Path

from adapters.checkpoint import read_directory
from adapters.errors import InvalidAdapter
from adapters.header import FILE, MAX_HEADER_BYTES, read_header
from adapters.manifest import Manifest
from loader.shape import BaseShape, LinearShape

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_MOST_TENSORS = MAX_HEADER_BYTES // 512


def manifest_of(folder: Path) -> Manifest | None:
    """The description that every base which can carry the adapter gives it; None when no base can."""
    try:
        return read_directory(folder, _implied_shape(folder / FILE)).manifest
    except InvalidAdapter:
        return None


def _implied_shape(weights: Path) -> BaseShape:
    """Exactly the linears that the file has factors for: `A [rank, in]`, `B [out, rank]`."""
    sizes: dict[str, dict[str, int]] = {}
    for name, spec in read_header(weights, _MOST_TENSORS).tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is not None and len(spec.shape) == 2:
            sizes.setdefault(match[1], {})[match[2]] = spec.shape[1 if match[2] == "A" else 0]
    linears = {path: LinearShape(path, size["A"], size["B"]) for path, size in sizes.items() if len(size) == 2}
    layers = [linear.layer for linear in linears.values() if linear.layer is not None]
    return BaseShape("the file's own base", max(layers, default=0) + 1, linears, {})
