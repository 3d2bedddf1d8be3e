"""The paged KV cache: tensors only.

Owns the memory that blocks number. Which block belongs to whom is `blocks.py`'s business.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from loader import pages
from loader.plan import KVLayer


class KVCache:
    """Keys and values `[blocks, block_size, kv_heads, head_dim]` for every layer.

    A token's slot is `block * block_size + offset`.
    """

    def __init__(
        self, layers: Sequence[KVLayer], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        shapes = [(num_blocks, block_size, layer.heads, layer.head_dim) for layer in layers]
        halves = iter(_zeros([shape for shape in shapes for _ in range(2)], dtype, device))
        self._layers = list(zip(halves, halves, strict=True))
        self._slots = [(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in self._layers]

    @property
    def num_bytes(self) -> int:
        return sum(half.nbytes for layer in self._layers for half in layer)

    def blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values by block: `[blocks, block_size, kv_heads, head_dim]` each."""
        return self._layers[layer]

    def slots(self, layer: int) -> tuple[Tensor, Tensor]:
        """The same memory by slot: `[blocks * block_size, kv_heads, head_dim]` each."""
        return self._slots[layer]

    def write(self, layer: int, slots_T: Tensor, keys_TKD: Tensor, values_TKD: Tensor) -> None:
        """Store the keys and values of T new tokens."""
        keys, values = self.slots(layer)
        keys.index_copy_(0, slots_T, keys_TKD)
        values.index_copy_(0, slots_T, values_TKD)


def _zeros(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """On a CPU a cache takes memory as it fills, all layers at one pace."""
    if device.type != "cpu":
        return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    most = max(map(prod, shapes), default=0)
    rooms = pages.apart(most, dtype, len(shapes))
    return [room[: prod(shape)].view(shape) for room, shape in zip(rooms, shapes, strict=True)]
