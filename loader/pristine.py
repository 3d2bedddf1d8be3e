"""Weights as they are on disk, whatever was done to the resident ones since.

Owns the map from linear layers to the tensors of the checkpoint. Reads safetensors headers at start and single
tensors on demand.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from loader import directory
from loader.product import TiledLinear


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a linear's weight lies: the tensor `name` in the safetensors `file`."""

    file: Path
    name: str

    def read(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A fresh copy in `dtype` on `device`; nothing else refers to its memory."""
        with safe_open(self.file, framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(self.name)
        return tensor.to(device, dtype, copy=True)


def origins(path: Path, linears: Mapping[str, nn.Linear | TiledLinear], tied: Mapping[str, str]) -> dict[str, Origin]:
    """The origin of each linear whose checkpoint tensor has its own name and shape; others are left out.

    `tied` names, for a linear that shares its weight, the tensor it shares.
    """
    files = dict(_tensors(path))
    found: dict[str, Origin] = {}
    for linear, module in linears.items():
        shape = (module.out_features, module.in_features)
        for name in (f"{linear}.weight", tied.get(linear, "")):
            if name in files and files[name][1] == shape:
                found[linear] = Origin(files[name][0], name)
                break
    return found


def _tensors(path: Path) -> Iterator[tuple[str, tuple[Path, tuple[int, ...]]]]:
    for file in directory.weight_files(path):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open cannot be iterated)
                yield name, (file, tuple(tensors.get_slice(name).get_shape()))
