"""A batch over a paged cache with blocks as FlashAttention reads them, for any way of attending to it."""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor, nn

from engine import attention
from engine.batch import in_batch_order, pack
from engine.flash import BLOCK, Flash
from engine.kv_cache import KVCache
from engine.scheduler import Chunk
from loader.plan import KVLayer
from tests.support.sequences import sequence

CPU = torch.device("cpu")


class World:
    """A mixed batch over blocks of 256, as a model hands it to attention; a cache of its own for every answer."""

    def __init__(
        self, counts: Sequence[tuple[int, int]], device: torch.device = CPU, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.device, self.dtype = device, dtype
        torch.manual_seed(4)
        blocks = iter(torch.randperm(8).tolist())
        chunks = []
        for number, (past, count) in enumerate(counts):
            own = [next(blocks) for _ in range(-(-(past + count) // BLOCK))]
            chunks.append(Chunk(sequence(str(number), prompt=range(past + count), blocks=own), past, count))
        self.chunks = in_batch_order(chunks)
        self.past = torch.randn(2, 8, BLOCK, 2, 16).to(device, dtype)
        total = sum(chunk.count for chunk in chunks)
        self.query, self.key, self.value = (
            torch.randn(1, total, heads, 16).to(device, dtype).transpose(1, 2) for heads in (4, 2, 2)
        )

    def only(self, number: int) -> "World":
        """The same with the one-token chunk at this place of the batch alone, in the same blocks."""
        one = copy(self)
        one.chunks = self.chunks[number : number + 1]
        assert all(chunk.count == 1 for chunk in self.chunks)
        one.query, one.key, one.value = (part[:, :, number : number + 1] for part in (self.query, self.key, self.value))
        return one

    def attend(
        self, flash: Flash | None, window: int | None, recorded: bool = False, softcap: float | None = None
    ) -> Tensor:
        cache = KVCache([KVLayer(2, 16)], 8, BLOCK, self.dtype, self.device)
        for held, given in zip(cache.blocks(0), self.past, strict=True):
            held.copy_(given)
        layer = nn.Module()
        layer.layer_idx = 0  # type: ignore[assignment]
        batch = pack(self.chunks, cache, self.device, None, flash)
        batch.recorded = recorded
        new = self.query, self.key, self.value
        out, _ = attention.paged_attention(layer, *new, None, 0.25, batch, window, softcap)
        return out.float().cpu()
