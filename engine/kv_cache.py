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
        self._layers = [
            _zeros((2, num_blocks, block_size, layer.heads, layer.head_dim), dtype, device) for layer in layers
        ]
        self._slots = [(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in self._layers]

    @property
    def num_bytes(self) -> int:
        return sum(layer.numel() * layer.element_size() for layer in self._layers)

    def blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values by block: `[blocks, block_size, kv_heads, head_dim]` each."""
        keys, values = self._layers[layer]
        return keys, values

    def slots(self, layer: int) -> tuple[Tensor, Tensor]:
        """The same memory by slot: `[blocks * block_size, kv_heads, head_dim]` each."""
        return self._slots[layer]

    def write(self, layer: int, slots_T: Tensor, keys_TKD: Tensor, values_TKD: Tensor) -> None:
        """Store the keys and values of T new tokens."""
        keys, values = self.slots(layer)
        keys.index_copy_(0, slots_T, keys_TKD)
        values.index_copy_(0, slots_T, values_TKD)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CPU a cache takes memory as it fills."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    return pages.zeros(prod(shape), dtype).view(*shape)
