"""The adapters' bytes on disk, each in a directory named by its id.

    <root>/sha256/ab/<64 hex digits>/{adapter_config.json, adapter_model.safetensors, manifest.json, label.json}
    <root>/quarantine/<64 hex digits>/    blobs that were found damaged, kept for whoever looks into it
    <root>/tmp/                           what is being written or removed
    <root>/names/                         what is known of names; see dossier_files.py

Owns durability: a blob is written aside, flushed and renamed into place, so it is there whole or not at all, after
kill -9 and power loss too. Paths are made from validated digests only. Knows no names and no versions; a label is
bytes to it.
"""

import hashlib
import json
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from adapters import config as config_file
from adapters import header
from adapters.checkpoint import Checkpoint
from adapters.description import Description, parse_description, parse_stored_header
from adapters.disk import Disk
from adapters.errors import AdapterCorrupt, Fault, InvalidAdapter, UnknownAdapter, quoted
from adapters.header import ITEM_BYTES, TensorSpec, chunks, opened, read_raw, write_header
from adapters.identity import confirm, damaged, digest
from adapters.manifest import AdapterId, Manifest
from adapters.manifest_json import manifest_from_json, manifest_to_json
from loader.digests import is_digest

MANIFEST = "manifest.json"
LABEL = "label.json"
KNOWN_HEADERS = 32
"""Whatever has the same tensors has the same header, so this many cover the ranks and targets of most tenants."""
KNOWN_DESCRIPTIONS = 32
"""Adapters of the same ranks, targets and scaling, made for one base, differ in their ids alone."""


class BlobStore:
    """Safe to use from many threads. Raises OSError as it comes when the disk is full or fails."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root, self.disk = root, disk or Disk()
        self._blobs, self._quarantine, self._tmp = root / "sha256", root / "quarantine", root / "tmp"
        self._parse, self._describe = (
            lru_cache(KNOWN_HEADERS)(parse_stored_header),
            lru_cache(KNOWN_DESCRIPTIONS)(parse_description),
        )
        self._mending = threading.Lock()  # so that a repaired blob is never taken for the damaged one it replaces
        for directory in (self._blobs, self._quarantine, self._tmp):
            directory.mkdir(parents=True, exist_ok=True)

    def path(self, id: AdapterId) -> Path:
        """The blob's directory, which PEFT can load; it need not exist. Raises UnknownAdapter for a malformed id."""
        digits = _digits(id)
        return self._blobs / digits[:2] / digits

    def put(self, checkpoint: Checkpoint) -> AdapterId:
        """Store a copy. A blob that is there already is re-hashed, and replaced if it was damaged.

        Raises InvalidAdapter when the checkpoint's file has changed since it was read.
        """
        id = checkpoint.manifest.id
        target = self.path(id)
        self.quarantine_if_damaged(id)
        if not target.exists():
            written = self._tmp / secrets.token_hex(16)
            self.disk.mkdir(written)
            try:
                self._write(checkpoint, written)
                self._install(written, target)
            finally:
                shutil.rmtree(written, ignore_errors=True)
        self._discard(self._quarantined(id))
        return id

    def open(self, id: AdapterId) -> Checkpoint:
        """The stored adapter, from its description alone: no weights are read.

        Raises UnknownAdapter when there is none, AdapterCorrupt when the description or the header is damaged.
        """
        directory = self.path(id)
        with self._explained(id):
            described = self._described(id)
            config = (directory / config_file.FILE).read_bytes()
            expected = described.shapes
            found = self._parse(*read_raw(directory / header.FILE, len(expected)), len(expected))
            intact = hashlib.sha256(config).hexdigest() == described.config_sha256
        if not intact or found.shapes != expected:
            raise damaged(id)
        return Checkpoint(described.manifest, config, directory / header.FILE, found.tensors, found.layout)

    def manifest(self, id: AdapterId) -> Manifest:
        """What the stored adapter says it is; the file with its weights is not looked at. Raises as `open` does."""
        with self._explained(id):
            return self._described(id).manifest

    def _described(self, id: AdapterId) -> Description:
        """Parsed once for all that differ in the id alone. Raises as `parse_description` does."""
        raw = (self.path(id) / MANIFEST).read_bytes()
        found = self._describe(raw.replace(id.encode(), b"", 1))  # which stands before whatever a tenant wrote
        if found.manifest.id:
            raise damaged(id)
        return replace(found, manifest=replace(found.manifest, id=id))

    def read_ahead(self, id: AdapterId) -> None:
        """The adapter will be read in a moment: the disk may begin. What goes wrong, the reader is told."""
        header.read_ahead(self.path(id) / header.FILE)

    @contextmanager
    def _explained(self, id: AdapterId) -> Iterator[None]:
        """Around reading what was stored: what is not there is unknown, unless something of it is left."""
        try:
            yield
        except FileNotFoundError:
            if self.path(id).exists() or self._quarantined(id).exists():
                raise damaged(id) from None
            raise UnknownAdapter(f"There is no adapter {id}.") from None
        except (ValueError, KeyError, TypeError, InvalidAdapter, AdapterCorrupt) as error:
            raise damaged(id) from error

    def verify(self, id: AdapterId) -> None:
        """Hash the stored weights again. Raises AdapterCorrupt, or UnknownAdapter when there is no such blob."""
        stored = self.open(id)
        confirm(stored.manifest, stored.weights, stored.tensors)

    def quarantine_if_damaged(self, id: AdapterId) -> bool:
        """Move the blob aside if its digest is wrong; whether it was. It is answered for with AdapterCorrupt then."""
        with self._mending:
            if not self.path(id).exists():
                return False
            try:
                self.verify(id)
            except AdapterCorrupt:
                self._discard(self._quarantined(id))
                return self._move(self.path(id), self._quarantined(id))
            except UnknownAdapter:
                pass  # deleted meanwhile
        return False

    def delete(self, id: AdapterId) -> None:
        """Remove the blob, at once for readers of the directory; files that are open stay readable. Absent is fine."""
        for directory in (self.path(id), self._quarantined(id)):
            self._discard(directory)

    def ids(self) -> Iterator[AdapterId]:
        """The blobs that are in place; whether they are intact is not asked."""
        return _ids(self._blobs.glob("??/*"))

    def quarantined(self) -> frozenset[AdapterId]:
        """The blobs that were found damaged and have not been uploaded again."""
        return frozenset(id for id in _ids(self._quarantine.iterdir()) if not self.path(id).exists())

    def described(self, id: AdapterId) -> Manifest:
        """What a blob says it is, in quarantine too; its bytes are not looked at. Raises AdapterCorrupt."""
        try:
            manifest = manifest_from_json(json.loads((self._home(id) / MANIFEST).read_bytes())["manifest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(id) from error
        if manifest.id != id:
            raise damaged(id)
        return manifest

    def label(self, id: AdapterId) -> bytes | None:
        """What was last written beside the blob, in quarantine too."""
        try:
            return (self._home(id) / LABEL).read_bytes()
        except FileNotFoundError:
            return None

    def set_label(self, id: AdapterId, content: bytes) -> None:
        """Replace the label; a reader sees the old one or the new one. Without a blob there is nothing to label."""
        written = self._tmp / secrets.token_hex(16)
        home = self._home(id)
        try:
            self.disk.replace(home / LABEL, content, aside=written)
        except FileNotFoundError:
            return  # deleted meanwhile

    def temporaries(self) -> list[Path]:
        """What is being written or removed, or was when a process was killed."""
        return list(self._tmp.iterdir())

    def clear_temporaries(self) -> int:
        """Remove what a killed process left half done, and count it. Only while nothing is being written."""
        leftovers = self.temporaries()
        for leftover in leftovers:
            leftover.unlink() if leftover.is_file() else self.disk.remove(leftover)
        replaced = [id for id in _ids(self._quarantine.iterdir()) if self.path(id).exists()]
        for id in replaced:
            self._discard(self._quarantined(id))
        return len(leftovers) + len(replaced)

    def _quarantined(self, id: AdapterId) -> Path:
        return self._quarantine / _digits(id)

    def _home(self, id: AdapterId) -> Path:
        """Where the blob is: in its place, or in quarantine."""
        return path if (path := self.path(id)).exists() else self._quarantined(id)

    def _discard(self, directory: Path) -> None:
        aside = self._tmp / secrets.token_hex(16)
        if self._move(directory, aside):
            self.disk.remove(aside)

    def _move(self, source: Path, target: Path) -> bool:
        """Rename durably; whether there was anything to rename."""
        if not source.exists():
            return False
        try:
            self.disk.rename(source, target)
        except FileNotFoundError:
            return False
        self.disk.sync_directory(source.parent)
        self.disk.sync_directory(target.parent)
        return True

    def _write(self, checkpoint: Checkpoint, into: Path) -> None:
        # Wide elements first, as safetensors itself orders them, so that every tensor is aligned in a mapped file.
        ordered = sorted(checkpoint.tensors.items(), key=lambda item: (-ITEM_BYTES[item[1].dtype], item[0]))
        head, moved = write_header(dict(ordered))
        weights = into / header.FILE
        with opened(checkpoint.weights) as source, self.disk.create(weights) as file:
            self.disk.write(file, head)
            for _, spec in ordered:
                for chunk in chunks(source, spec):
                    self.disk.write(file, chunk)
            self.disk.sync(file.fileno())
        self._check_copy(checkpoint, weights, moved)
        described = {
            "config_sha256": hashlib.sha256(checkpoint.config).hexdigest(),
            "manifest": manifest_to_json(checkpoint.manifest),
        }
        self.disk.put(into / config_file.FILE, checkpoint.config)
        self.disk.put(into / MANIFEST, json.dumps(described).encode())
        self.disk.sync_directory(into)

    def _check_copy(self, checkpoint: Checkpoint, weights: Path, tensors: dict[str, TensorSpec]) -> None:
        """What is stored under a digest must have it, whatever happened to the upload between reading and copying."""
        manifest = checkpoint.manifest
        if digest(manifest.kind, manifest.grafts, weights, tensors) != manifest.id:
            fault = Fault(header.FILE, "the file changed while it was being read", "Upload it again")
            raise InvalidAdapter([fault])

    def _install(self, written: Path, target: Path) -> None:
        self.disk.mkdir(target.parent)
        self.disk.sync_directory(self._blobs)
        try:
            self.disk.rename(written, target)
        except OSError:
            # Another thread was faster: a directory cannot be renamed onto one with files in it.
            if not target.exists():
                raise
        self.disk.sync_directory(target.parent)


def _digits(id: AdapterId) -> str:
    """The only part of a path that comes from outside. Raises UnknownAdapter unless it is 64 hexadecimal digits."""
    if not is_digest(id):
        raise UnknownAdapter(f"{quoted(id)} is not an adapter id.")
    return id.removeprefix("sha256:")


def _ids(directories: Iterable[Path]) -> Iterator[AdapterId]:
    for directory in sorted(directories):
        id = AdapterId(f"sha256:{directory.name}")
        if is_digest(id) and directory.is_dir():
            yield id
