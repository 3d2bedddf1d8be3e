"""The linear layers of a base on disk, read from its safetensors headers.

Owns just enough of the format to name and size the weights that adapters attach to. Reads no weights, and
knows nothing of the server that serves them.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.errors import BenchError

_LONGEST_HEADER = 100_000_000
"""Bytes, as the format has it."""


@dataclass(frozen=True, slots=True)
class Linear:
    """The weight `[out_features, in_features]` of the module at `path`."""

    path: str
    in_features: int
    out_features: int

    @property
    def module(self) -> str:
        """Its name within a layer, as adapters name their targets."""
        return self.path.rsplit(".", 1)[-1]


def linears(directory: Path) -> list[Linear]:
    """Every linear inside the decoder layers of the base in `directory`, in file order; the head is left out.

    Raises BenchError where the directory has no safetensors, or broken ones.
    """
    return [
        Linear(name.removesuffix(".weight"), in_features=shape[1], out_features=shape[0])
        for name, shape in _shapes(directory).items()
        if ".layers." in name and name.endswith(".weight") and len(shape) == 2
    ]


def vocab_size(directory: Path) -> int:
    """The rows of the token embedding. Raises BenchError as `linears`, and where no tensor is named as one."""
    return _embedding(directory)[0]


def head_weights(directory: Path) -> int:
    """The number of the head's weights: that of the embedding, whether or not they are tied. Raises as `vocab_size`."""
    rows, width = _embedding(directory)
    return rows * width


def _embedding(directory: Path) -> list[int]:
    for name, shape in _shapes(directory).items():
        if name.endswith("embed_tokens.weight"):
            return shape
    raise BenchError(f"No tensor in {directory} is named *embed_tokens.weight, so its vocabulary is not known.")


def _shapes(directory: Path) -> dict[str, list[int]]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise BenchError(f"{directory} has no *.safetensors. Give the directory of a Hugging Face model.")
    return {name: entry["shape"] for file in files for name, entry in _header(file).items() if name != "__metadata__"}


def _header(file: Path) -> dict[str, Any]:
    """The JSON after the eight-byte little-endian length that opens a safetensors file."""
    with file.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = orjson.loads(stream.read(min(length, _LONGEST_HEADER)))
        except (struct.error, orjson.JSONDecodeError) as error:
            raise BenchError(f"{file} is no safetensors file, or not whole. Write or download it again.") from error
        return header
