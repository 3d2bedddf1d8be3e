"""The paged KV cache: tensors only.

Owns the memory that blocks number. Which block belongs to whom is `blocks.py`'s business.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVShape:
    """One layer's cache entry for one token: `kv_heads` keys and values of `head_dim` elements."""

    kv_heads: int
    head_dim: int

    @property
    def elements(self) -> int:
        return 2 * self.kv_heads * self.head_dim


class KVCache:
    """Keys and values `[blocks, block_size, kv_heads, head_dim]` for every layer.

    A token's slot is `block * block_size + offset`.
    """

    def __init__(
        self, layers: Sequence[KVShape], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._layers = [
            torch.zeros(2, num_blocks, block_size, shape.kv_heads, shape.head_dim, dtype=dtype, device=device)
            for shape in layers
        ]

    @property
    def num_bytes(self) -> int:
        return sum(layer.numel() * layer.element_size() for layer in self._layers)

    def blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values by block: `[blocks, block_size, kv_heads, head_dim]` each."""
        keys, values = self._layers[layer]
        return keys, values

    def slots(self, layer: int) -> tuple[Tensor, Tensor]:
        """The same memory by slot: `[blocks * block_size, kv_heads, head_dim]` each."""
        keys, values = self._layers[layer]
        return keys.flatten(0, 1), values.flatten(0, 1)

    def write(self, layer: int, slots_T: Tensor, keys_TKD: Tensor, values_TKD: Tensor) -> None:
        """Store the keys and values of T new tokens."""
        keys, values = self.slots(layer)
        keys.index_copy_(0, slots_T, keys_TKD)
        values.index_copy_(0, slots_T, values_TKD)
