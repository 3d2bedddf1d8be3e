"""A base's fingerprint: which weights an adapter was trained on, and whether a server has the same ones.

The recipe, version 1. SHA-256 over `{"format":"rootstock-base-1"}`, then for each tensor, sorted by name,
`{"dtype":"BF16","name":"model...","shape":[576,576]}`, each as a line of ASCII JSON with sorted keys, no spaces and a
final newline, followed by the tensor's bytes as they are stored. Not part of it: how the tensors are spread over
files, their order, the files' metadata, config and tokenizer.

Owns the recipe and the note of what was computed before. Reads a few MiB at a time; imports no torch.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loader import directory
from loader.digests import is_digest
from loader.errors import BaseNotFound
from loader.tensors import Stored, stored

FORMAT = "rootstock-base-1"
CHUNK_BYTES = 4 << 20


def fingerprint(path: Path, cache: Path | None) -> str:
    """ "sha256:<64 hex digits>" of the base in the directory `path`: about a second for each GB, or the disk's time.

    With `cache`, the data directory, it is remembered there until a weight file changes its size or time.
    Raises BaseNotFound when the base is incomplete or damaged.
    """
    state = _state(path)
    note = None if cache is None else _note(cache, path)
    known = None if note is None else _remembered(note, state)
    if known is not None:
        return known
    found = f"sha256:{_digest(sorted(stored(path), key=lambda tensor: tensor.name))}"
    if note is not None:
        _remember(note, state, found)
    return found


def _digest(tensors: Sequence[Stored]) -> str:
    sha = hashlib.sha256(_record({"format": FORMAT}))
    for before, tensor in zip((None, *tensors), tensors, strict=False):
        if before is not None and before.name == tensor.name:
            raise BaseNotFound(f"{tensor.file.parent} holds {tensor.name} twice. Fetch the model again.")
        sha.update(_record({"dtype": tensor.dtype, "name": tensor.name, "shape": tensor.shape}))
        for chunk in _chunks(tensor):
            sha.update(chunk)
    return sha.hexdigest()


def _record(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def _chunks(tensor: Stored) -> Iterator[bytes]:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.stop - tensor.start
        while left > 0:
            chunk = file.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise BaseNotFound(f"{tensor.file} ends within {tensor.name}. Fetch the model again.")
            left -= len(chunk)
            yield chunk


def _state(path: Path) -> dict[str, list[int]]:
    """What changes when a weight file does, as far as that can be told without reading it."""
    stats = {file.name: file.stat() for file in directory.weight_files(path)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _note(cache: Path, path: Path) -> Path:
    """One small file for each base, so that two processes do not write over each other's."""
    return cache / "fingerprints" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def _remembered(note: Path, state: Mapping[str, Sequence[int]]) -> str | None:
    try:
        written = json.loads(note.read_bytes())
        same = written["format"] == FORMAT and written["files"] == state
        found = written["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if same and is_digest(found) else None


def _remember(note: Path, state: Mapping[str, Sequence[int]], found: str) -> None:
    """A note that cannot be written costs the next start some seconds, and nothing else."""
    aside = note.with_name(f".{note.name}.{secrets.token_hex(8)}")
    text = json.dumps({"format": FORMAT, "files": state, "fingerprint": found})
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.rename(note)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
