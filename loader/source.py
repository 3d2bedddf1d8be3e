"""From what the user typed to a directory that can be loaded.

Owns the meaning of `--base`. Imports no torch: the memory plan needs the directory before torch is there.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from loader import directory, gguf, hub
from loader.errors import BaseNotFound
from loader.progress import Progress, ignore

EMBEDDED = "embedded"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """A base on disk: `path` holds config.json, safetensors and a tokenizer. `id` is the name clients see."""

    id: str
    path: Path


def resolve(base: str, data_dir: Path, progress: Progress = ignore) -> Source:
    """Find `base`: "embedded", a directory, a *.gguf file, or a hub id; convert or download it if need be.

    GGUF files are dequantized once, into `data_dir/bases`. Raises BaseNotFound, HubOffline, UnsafeWeights or
    UnsupportedBase.
    """
    if base == EMBEDDED:
        return Source(gguf.EMBEDDED_ID, gguf.convert(gguf.embedded(), gguf.EMBEDDED_ID, data_dir, progress))
    path = Path(base).expanduser()
    if path.is_dir():
        directory.check(path)
        return Source(path.resolve().name, path.resolve())
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise BaseNotFound(f"{path} does not exist. Give the path of a GGUF file, or --base embedded.")
        name = _slug(path.stem)
        return Source(name, gguf.convert(path, name, data_dir, progress))
    if HUB_ID.fullmatch(base):
        return Source(base, hub.fetch(base, progress))
    raise BaseNotFound(
        f"{base!r} is no directory, no GGUF file and no hub id. "
        "Give --base embedded, a model directory, a *.gguf file, or an id such as organization/name."
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "gguf"
