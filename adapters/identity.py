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

Content = bytes | memoryview
Inspect = Callable[[str, TensorSpec, bytes], None]

BLOCK_BYTES = 1 << 17
"""What is hashed at once: the interpreter is let go of seldom, and the bytes are still in the processor's cache."""
HANDED_BYTES = 1 << 20
"""What is hashed at once in another thread: so much that handing it over costs little beside it."""


def ignore(name: str, spec: TensorSpec, chunk: bytes) -> None:
    """The inspection that sees nothing."""


def digest(
    kind: Kind,
    grafts: Iterable[Graft],
    weights: Path,
    tensors: Mapping[str, TensorSpec],
    inspect: Inspect = ignore,
) -> AdapterId:
    """The id, from one pass over the file. `inspect` sees every chunk that is hashed, so that both see the same bytes.

    Chunks are whole numbers of elements. Raises InvalidAdapter when the file shrinks meanwhile, OSError as it comes.
    """
    found = Digest(kind, grafts)
    with opened(weights) as file:
        for name in sorted(tensors):
            spec = tensors[name]
            found.update([tensor_record(name, spec)])
            for chunk in chunks(file, spec):
                found.update([chunk])
                inspect(name, spec, chunk)
    return found.id()


def confirm(manifest: Manifest, weights: Path, tensors: Mapping[str, TensorSpec]) -> None:
    """Raises AdapterCorrupt unless the file holds what the manifest's id stands for; the rest is `digest`'s."""
    try:
        found = digest(manifest.kind, manifest.grafts, weights, tensors)
    except InvalidAdapter as error:
        raise damaged(manifest.id) from error
    if found != manifest.id:
        raise damaged(manifest.id)


def damaged(id: AdapterId) -> AdapterCorrupt:
    return AdapterCorrupt(f"The stored adapter {id} is damaged. Upload it again to repair it.")


def tensor_record(name: str, spec: TensorSpec) -> bytes:
    """As `_record` writes it, without its detours: an adapter has hundreds."""
    shape = ",".join(map(str, spec.shape))
    return f'{{"dtype":"{spec.dtype}","name":{encode_basestring_ascii(name)},"shape":[{shape}]}}\n'.encode("ascii")


class Digest:
    """The id of an adapter whose tensors' records and bytes are given in their order.

    A block is hashed at a time, so that the interpreter is let go of, and waited for, seldom. With `beside` that is
    done in another thread, and not more than one block waits.
    """

    def __init__(self, kind: Kind, grafts: Iterable[Graft], beside: "Executor | None" = None) -> None:
        described = [
            [graft.path, graft.in_features, graft.out_features, graft.rank, graft.scaling, graft.dora]
            for graft in sorted(grafts, key=lambda graft: graft.path)
        ]
        self._sha, self._beside = hashlib.sha256(), beside
        self._held: list[bytes] = []
        self._size = 0
        self._pending: Future[None] | None = None
        self.update([_record({"format": "rootstock-adapter-1", "kind": kind, "grafts": described})])

    def update(self, contents: Iterable[Content]) -> None:
        """What was given may change afterwards."""
        block = b"".join(contents)
        self._held.append(block)
        self._size += len(block)
        if self._size >= (BLOCK_BYTES if self._beside is None else HANDED_BYTES):
            self._flush(self._beside)

    def id(self) -> AdapterId:
        self._flush(None)
        return AdapterId(f"sha256:{self._sha.hexdigest()}")

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
