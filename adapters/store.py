"""The adapters' bytes on disk, each in a directory named by its id.

    <root>/sha256/ab/<64 hex digits>/{adapter_config.json, adapter_model.safetensors, manifest.json}
    <root>/tmp/                       what is being written or removed

Owns durability: a blob is written aside, flushed and renamed into place, so it is there whole or not at all, after
kill -9 and power loss too. Paths are made from validated digests only. Knows no names and no versions.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from adapters import config as config_file
from adapters import header
from adapters.checkpoint import Checkpoint
from adapters.errors import AdapterCorrupt, Fault, InvalidAdapter, UnknownAdapter, quoted
from adapters.expected import expected_tensors
from adapters.header import ITEM_BYTES, TensorSpec, chunks, read_header, write_header
from adapters.identity import digest
from adapters.manifest import AdapterId
from adapters.manifest_json import manifest_from_json, manifest_to_json
from adapters.naming import is_id

MANIFEST = "manifest.json"


class BlobStore:
    """Safe to use from many threads. Raises OSError as it comes when the disk is full or fails."""

    def __init__(self, root: Path) -> None:
        self._blobs, self._tmp = root / "sha256", root / "tmp"
        for directory in (self._blobs, self._tmp):
            directory.mkdir(parents=True, exist_ok=True)

    def path(self, id: AdapterId) -> Path:
        """The blob's directory, which PEFT can load; it need not exist. Raises UnknownAdapter for a malformed id."""
        if not is_id(id):
            raise UnknownAdapter(f"{quoted(id)} is not an adapter id.")
        digits = id.removeprefix("sha256:")
        return self._blobs / digits[:2] / digits

    def put(self, checkpoint: Checkpoint) -> AdapterId:
        """Store a copy. A blob that is there already is re-hashed, and replaced if it was damaged.

        Raises InvalidAdapter when the checkpoint's file has changed since it was read.
        """
        id = checkpoint.manifest.id
        target = self.path(id)
        if target.exists():
            try:
                self.verify(id)
                return id
            except (AdapterCorrupt, UnknownAdapter):
                self.delete(id)
        written = self._aside()
        try:
            self._write(checkpoint, written)
            self._install(written, target)
        finally:
            shutil.rmtree(written, ignore_errors=True)
        return id

    def open(self, id: AdapterId) -> Checkpoint:
        """The stored adapter, from its description alone: no weights are read.

        Raises UnknownAdapter when there is none, AdapterCorrupt when the description or the header is damaged.
        """
        directory = self.path(id)
        try:
            described = json.loads((directory / MANIFEST).read_bytes())
            config = (directory / config_file.FILE).read_bytes()
            manifest = manifest_from_json(described["manifest"])
            intact = manifest.id == id and hashlib.sha256(config).hexdigest() == described["config_sha256"]
            expected = expected_tensors(manifest.grafts)
            tensors = read_header(directory / header.FILE, len(expected)).tensors
        except FileNotFoundError:
            if directory.exists():
                raise _corrupt(id) from None
            raise UnknownAdapter(f"There is no adapter {id}.") from None
        except (ValueError, KeyError, TypeError, InvalidAdapter, AdapterCorrupt) as error:
            raise _corrupt(id) from error
        if not intact or {name: spec.shape for name, spec in tensors.items()} != expected:
            raise _corrupt(id)
        return Checkpoint(manifest, config, directory / header.FILE, tensors)

    def verify(self, id: AdapterId) -> None:
        """Hash the stored weights again. Raises AdapterCorrupt, or UnknownAdapter when there is no such blob."""
        stored = self.open(id)
        try:
            found = digest(stored.manifest.kind, stored.manifest.grafts, stored.weights, stored.tensors)
        except InvalidAdapter as error:
            raise _corrupt(id) from error
        if found != id:
            raise _corrupt(id)

    def delete(self, id: AdapterId) -> None:
        """Remove the blob, at once for readers of the directory; files that are open stay readable. Absent is fine."""
        aside = self._tmp / secrets.token_hex(16)
        target = self.path(id)
        try:
            os.rename(target, aside)
        except FileNotFoundError:
            return
        _sync(target.parent)
        shutil.rmtree(aside)

    def ids(self) -> Iterator[AdapterId]:
        for directory in sorted(self._blobs.glob("??/*")):
            id = AdapterId(f"sha256:{directory.name}")
            if is_id(id) and directory.is_dir():
                yield id

    def clear_temporaries(self) -> int:
        """Remove what a killed process left half done, and count it. Only while nothing is being written."""
        leftovers = list(self._tmp.iterdir())
        for leftover in leftovers:
            shutil.rmtree(leftover)
        return len(leftovers)

    def _aside(self) -> Path:
        aside = self._tmp / secrets.token_hex(16)
        aside.mkdir()
        return aside

    def _write(self, checkpoint: Checkpoint, into: Path) -> None:
        # Wide elements first, as safetensors itself orders them, so that every tensor is aligned in a mapped file.
        ordered = sorted(checkpoint.tensors.items(), key=lambda item: (-ITEM_BYTES[item[1].dtype], item[0]))
        head, moved = write_header(dict(ordered))
        weights = into / header.FILE
        with weights.open("wb") as file:
            file.write(head)
            for _, spec in ordered:
                for chunk in chunks(checkpoint.weights, spec):
                    file.write(chunk)
            _sync_file(file)
        self._check_copy(checkpoint, weights, moved)
        described = {
            "config_sha256": hashlib.sha256(checkpoint.config).hexdigest(),
            "manifest": manifest_to_json(checkpoint.manifest),
        }
        for name, content in ((config_file.FILE, checkpoint.config), (MANIFEST, json.dumps(described).encode())):
            with (into / name).open("wb") as file:
                file.write(content)
                _sync_file(file)
        _sync(into)

    def _check_copy(self, checkpoint: Checkpoint, weights: Path, tensors: dict[str, TensorSpec]) -> None:
        """What is stored under a digest must have it, whatever happened to the upload between reading and copying."""
        manifest = checkpoint.manifest
        if digest(manifest.kind, manifest.grafts, weights, tensors) != manifest.id:
            fault = Fault(header.FILE, "the file changed while it was being read", "Upload it again")
            raise InvalidAdapter([fault])

    def _install(self, written: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        _sync(self._blobs)
        try:
            os.rename(written, target)
        except OSError:
            # Another thread was faster: a directory cannot be renamed onto one with files in it.
            if not target.exists():
                raise
        _sync(target.parent)


def _corrupt(id: AdapterId) -> AdapterCorrupt:
    return AdapterCorrupt(f"The stored adapter {id} is damaged. Upload it again to repair it.")


def _sync_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Make renames inside a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
