"""What the store keeps beside an adapter's weights, parsed: its description, and the header of its file.

Owns what is made of either once, for all adapters that are alike. Reads no file; whether the two agree is the store's
to say.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from adapters.expected import expected_tensors
from adapters.header import TensorSpec, parse_header
from adapters.layout import Layout, lay_out
from adapters.manifest import Manifest
from adapters.manifest_json import manifest_from_json


@dataclass(frozen=True, slots=True)
class StoredHeader:
    """What a header says: the tensors, their shapes, and how they are read."""

    tensors: Mapping[str, TensorSpec]
    shapes: Mapping[str, tuple[int, ...]]
    layout: Layout


def parse_stored_header(size: int, raw: bytes, max_tensors: int) -> StoredHeader:
    """Raises InvalidAdapter."""
    tensors = parse_header(size, raw, max_tensors).tensors
    return StoredHeader(tensors, {name: spec.shape for name, spec in tensors.items()}, lay_out(tensors))


@dataclass(frozen=True, slots=True)
class Description:
    """What is stored beside the weights, and the shapes that their tensors must have."""

    manifest: Manifest
    config_sha256: str
    shapes: Mapping[str, tuple[int, ...]]


def parse_description(raw: bytes) -> Description:
    """Raises ValueError, KeyError, TypeError or AdapterCorrupt for what the store did not write."""
    described = json.loads(raw)
    manifest = manifest_from_json(described["manifest"])
    return Description(manifest, described["config_sha256"], expected_tensors(manifest.grafts))
