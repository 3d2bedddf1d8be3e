"""Where a base's tensors lie: the headers of its safetensors files, whatever the shards.

Owns the reading of those headers (format: https://github.com/huggingface/safetensors#format). Reads no weights and
imports no torch. A base is the operator's own choice, so this checks for damage, not for malice.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loader import directory
from loader.errors import BaseNotFound


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor: `dtype` as safetensors calls it (BF16), its bytes at [`start`, `stop`) of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


def stored(path: Path) -> Iterator[Stored]:
    """Every tensor of the base in `path`, file by file. Raises BaseNotFound for a file that is no safetensors."""
    for file in directory.weight_files(path):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            raw = stream.read(min(length, file.stat().st_size))
        try:
            entries = json.loads(raw)
            entries.pop("__metadata__", None)
            yield from [_stored(name, entry, file, 8 + length) for name, entry in entries.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BaseNotFound(f"{file} is not a safetensors file. Fetch the model again.") from error


def _stored(name: str, entry: dict[str, list[int]], file: Path, data: int) -> Stored:
    start, stop = entry["data_offsets"]
    return Stored(name, str(entry["dtype"]), tuple(entry["shape"]), file, data + start, data + stop)
