"""An adapter's identity: the digest of what it computes, whatever file, order or name it came in.

The recipe, version 1. SHA-256 over a sequence of records, each record a line of ASCII JSON with sorted keys, no
spaces and a final newline:

1. `{"format":"rootstock-adapter-1","grafts":[...],"kind":"lora"}`, where a graft is `[path, in_features,
   out_features, rank, scaling, dora]` and grafts are sorted by path. `scaling` is the shortest decimal that reads
   back as the same double.
2. For each tensor, sorted by name: `{"dtype":"BF16","name":"base_model.model...","shape":[8,576]}`, followed by the
   tensor's bytes as in the file: little-endian, row-major, as many as dtype and shape say.

Not part of it: the base's name, dropout and other training settings, file metadata, the order of tensors in the file.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from adapters.errors import AdapterCorrupt, InvalidAdapter
from adapters.header import TensorSpec, chunks, opened
from adapters.manifest import AdapterId, Graft, Kind, Manifest

Inspect = Callable[[str, TensorSpec, bytes], None]


def ignore(name: str, spec: TensorSpec, chunk: bytes) -> None:
    """The inspection that sees nothing."""


def digest(
    kind: Kind, grafts: Iterable[Graft], weights: Path, tensors: Mapping[str, TensorSpec], inspect: Inspect = ignore
) -> AdapterId:
    """The id, from one pass over the file. `inspect` sees every chunk that is hashed, so that both see the same bytes.

    Chunks are whole numbers of elements. Raises InvalidAdapter when the file shrinks meanwhile, OSError as it comes.
    """
    sha = hashlib.sha256()
    described = [
        [graft.path, graft.in_features, graft.out_features, graft.rank, graft.scaling, graft.dora]
        for graft in sorted(grafts, key=lambda graft: graft.path)
    ]
    sha.update(_record({"format": "rootstock-adapter-1", "kind": kind, "grafts": described}))
    with opened(weights) as file:
        for name in sorted(tensors):
            spec = tensors[name]
            sha.update(_tensor_record(name, spec))
            for chunk in chunks(file, spec):
                sha.update(chunk)
                inspect(name, spec, chunk)
    return AdapterId(f"sha256:{sha.hexdigest()}")


def confirm(manifest: Manifest, weights: Path, tensors: Mapping[str, TensorSpec], inspect: Inspect = ignore) -> None:
    """Raises AdapterCorrupt unless the file holds what the manifest's id stands for. `inspect` is `digest`'s."""
    try:
        found = digest(manifest.kind, manifest.grafts, weights, tensors, inspect)
    except InvalidAdapter as error:
        raise damaged(manifest.id) from error
    if found != manifest.id:
        raise damaged(manifest.id)


def damaged(id: AdapterId) -> AdapterCorrupt:
    return AdapterCorrupt(f"The stored adapter {id} is damaged. Upload it again to repair it.")


def _record(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _tensor_record(name: str, spec: TensorSpec) -> bytes:
    """As `_record` writes it, without its detours: an adapter has hundreds, and a request waits for them."""
    shape = ",".join(map(str, spec.shape))
    return f'{{"dtype":"{spec.dtype}","name":{json.dumps(name)},"shape":[{shape}]}}\n'.encode("ascii")
