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
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import AdapterCorrupt, InvalidAdapter
from adapters.header import TensorSpec, chunks, opened
from adapters.manifest import AdapterId, Graft, Kind, Manifest

if TYPE_CHECKING:  # a sandbox starts for each upload, and needs none of it
    from concurrent.futures import Executor, Future

Inspect = Callable[[str, TensorSpec, bytes], None]

BLOCK_BYTES = 1 << 20
"""What is hashed at once: so much that handing it to another thread costs little beside it."""


def ignore(name: str, spec: TensorSpec, chunk: bytes) -> None:
    """The inspection that sees nothing."""


def digest(
    kind: Kind,
    grafts: Iterable[Graft],
    weights: Path,
    tensors: Mapping[str, TensorSpec],
    inspect: Inspect = ignore,
    beside: "Executor | None" = None,
) -> AdapterId:
    """The id, from one pass over the file. `inspect` sees every chunk that is hashed, so that both see the same bytes.

    Chunks are whole numbers of elements. With `beside`, which has one thread, one block is hashed there while the next
    is read and inspected. Raises InvalidAdapter when the file shrinks meanwhile, OSError as it comes.
    """
    sha = _Sha(beside)
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


def confirm(
    manifest: Manifest,
    weights: Path,
    tensors: Mapping[str, TensorSpec],
    inspect: Inspect = ignore,
    beside: "Executor | None" = None,
) -> None:
    """Raises AdapterCorrupt unless the file holds what the manifest's id stands for; the rest is `digest`'s."""
    try:
        found = digest(manifest.kind, manifest.grafts, weights, tensors, inspect, beside)
    except InvalidAdapter as error:
        raise damaged(manifest.id) from error
    if found != manifest.id:
        raise damaged(manifest.id)


def damaged(id: AdapterId) -> AdapterCorrupt:
    return AdapterCorrupt(f"The stored adapter {id} is damaged. Upload it again to repair it.")


class _Sha:
    """SHA-256 of what it is given, a block at a time. Not more than one block waits to be hashed."""

    def __init__(self, beside: "Executor | None") -> None:
        self._sha, self._beside = hashlib.sha256(), beside
        self._held: list[bytes] = []
        self._size = 0
        self._pending: Future[None] | None = None

    def update(self, content: bytes) -> None:
        self._held.append(content)
        self._size += len(content)
        if self._size >= BLOCK_BYTES:
            self._flush(self._beside)

    def hexdigest(self) -> str:
        self._flush(None)
        return self._sha.hexdigest()

    def _flush(self, beside: "Executor | None") -> None:
        block, self._held, self._size = b"".join(self._held), [], 0
        if self._pending is not None:
            self._pending.result()
        if beside is None:
            self._sha.update(block)
        else:
            self._pending = beside.submit(self._sha.update, block)


def _record(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _tensor_record(name: str, spec: TensorSpec) -> bytes:
    """As `_record` writes it, without its detours: an adapter has hundreds, and a request waits for them."""
    shape = ",".join(map(str, spec.shape))
    return f'{{"dtype":"{spec.dtype}","name":{encode_basestring_ascii(name)},"shape":[{shape}]}}\n'.encode("ascii")
