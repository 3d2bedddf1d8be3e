"""Paged attention against a plain softmax loop, one query and one head at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from engine.attention import paged_attention
from engine.batch import PagedBatch, in_batch_order, pack
from engine.kv_cache import KVCache
from engine.scheduler import Chunk
from loader.plan import KVLayer
from tests.support.sequences import sequence

HEADS, KV_HEADS, WIDTH, BLOCK = 4, 2, 8, 4
CPU = torch.device("cpu")
LAYER = nn.Module()
LAYER.layer_idx = 1  # type: ignore[assignment]


@dataclass(frozen=True)
class Rule:
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    heads: int = HEADS
    kv_heads: int = KV_HEADS


RULES = {
    "plain": Rule(),
    "window": Rule(window=5),
    "window of one": Rule(window=1),
    "softcap": Rule(softcap=2.0),
    "sinks": Rule(sinks=True),
    "everything": Rule(window=6, softcap=3.0, sinks=True),
    "no groups": Rule(heads=3, kv_heads=3),
    "one key head": Rule(heads=6, kv_heads=1, window=7),
}
# per sequence: how many tokens are in the cache already, how many come in this step
BATCHES = {
    "prefill": [(0, 9), (0, 1), (0, 16)],
    "chunked": [(8, 5), (3, 6), (15, 2)],
    "decode": [(12, 1), (0, 1), (7, 1), (3, 1)],
    "mixed": [(9, 1), (0, 7), (6, 4), (20, 1), (0, 1)],
}


class World:
    """Sequences with known keys and values, their past already in a shuffled paged cache."""

    def __init__(self, batch: Sequence[tuple[int, int]], rule: Rule, poison: float | None = None) -> None:
        torch.manual_seed(9)
        self.rule = rule
        shape = KVLayer(rule.kv_heads, WIDTH)
        self.cache = KVCache([shape, shape], 40, BLOCK, torch.float32, CPU)
        if poison is not None:
            for part in self.cache.slots(1):
                part.fill_(poison)
        free = torch.randperm(40).tolist()
        chunks = []
        for number, (past, count) in enumerate(batch):
            blocks = [free.pop() for _ in range(-(-(past + count) // BLOCK))]
            of = sequence(str(number), prompt=range(past + count), blocks=blocks, adapter="ab"[number % 2])
            chunks.append(Chunk(of, past, count))
        self.chunks = in_batch_order(chunks)
        total = sum(chunk.count for chunk in chunks)
        self.sinks = torch.randn(rule.heads) if rule.sinks else None
        self.query = torch.randn(1, total, rule.heads, WIDTH).transpose(1, 2)
        self.keys = {c.sequence.id: torch.randn(c.stop, rule.kv_heads, WIDTH) for c in self.chunks}
        self.values = {c.sequence.id: torch.randn(c.stop, rule.kv_heads, WIDTH) for c in self.chunks}
        for chunk in self.chunks:
            slots = torch.tensor([chunk.sequence.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(chunk.start)])
            id, old = chunk.sequence.id, chunk.start
            self.cache.write(1, slots.long(), self.keys[id][:old], self.values[id][:old])

    def attend(self) -> Tensor:
        """`[T, H, D]`, as the model would be given it."""
        new = [(c.sequence.id, slice(c.start, c.stop)) for c in self.chunks]
        key = torch.cat([self.keys[id][rows] for id, rows in new]).transpose(0, 1)[None]
        value = torch.cat([self.values[id][rows] for id, rows in new]).transpose(0, 1)[None]
        out, _ = paged_attention(
            LAYER, self.query, key, value, None, 0.3, pack(self.chunks, self.cache, CPU),
            sliding_window=self.rule.window, softcap=self.rule.softcap, s_aux=self.sinks, position_ids=None,
        )  # fmt: skip
        assert out.shape == (1, self.query.shape[2], self.rule.heads, WIDTH)
        return out[0]

    def plain(self) -> Tensor:
        """The definition."""
        rows = []
        queries = iter(self.query[0].transpose(0, 1))
        for chunk in self.chunks:
            for position in range(chunk.start, chunk.stop):
                query = next(queries)
                rows.append(torch.stack([self._head(chunk, position, h, query[h]) for h in range(self.rule.heads)]))
        return torch.stack(rows)

    def _head(self, chunk: Chunk, position: int, head: int, query: Tensor) -> Tensor:
        group = head // (self.rule.heads // self.rule.kv_heads)
        first = 0 if self.rule.window is None else max(0, position - self.rule.window + 1)
        id = chunk.sequence.id
        scores = [0.3 * float(query @ self.keys[id][at, group]) for at in range(first, position + 1)]
        if self.rule.softcap is not None:
            scores = [math.tanh(score / self.rule.softcap) * self.rule.softcap for score in scores]
        weights = [math.exp(score) for score in scores]
        total = sum(weights) + (0.0 if self.sinks is None else math.exp(float(self.sinks[head])))
        seen = self.values[id][first : position + 1, group]
        return sum((w / total * v for w, v in zip(weights, seen, strict=True)), start=torch.zeros(WIDTH))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch", BATCHES)
def test_paged_attention_is_the_plain_loop(batch: str, rule: str) -> None:
    world = World(BATCHES[batch], RULES[rule])
    assert torch.allclose(world.attend(), world.plain(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", ["plain", "everything"])
@pytest.mark.parametrize("batch", BATCHES)
def test_what_strangers_left_in_the_cache_reaches_nobody(batch: str, rule: str) -> None:
    """Every slot that is not in somebody's context holds NaN; 0 * NaN would be NaN."""
    world = World(BATCHES[batch], RULES[rule], poison=math.nan)
    assert torch.allclose(world.attend(), world.plain(), atol=1e-5, rtol=1e-4)


def test_a_sequence_that_overflowed_spoils_only_itself() -> None:
    world = World(BATCHES["mixed"], RULES["plain"])
    clean = World(BATCHES["mixed"], RULES["plain"]).attend()
    bad = world.chunks[0]
    world.values[bad.sequence.id][-1] = math.nan
    out = world.attend()
    assert out[0].isnan().all() and torch.equal(out[1:], clean[1:])


def test_decoding_rows_come_first_and_adapters_side_by_side() -> None:
    world = World(BATCHES["mixed"], RULES["plain"])
    order = [(chunk.count > 1, chunk.sequence.adapter or "") for chunk in world.chunks]
    assert order == sorted(order)
    packed = pack(world.chunks, world.cache, CPU)
    assert packed.num_decoding == 3 and packed.longest_decoding == 21
    assert packed.starts_N.tolist() == [0, 1, 2, 3, *[3 + n for n in _running_sum(packed)]]
    assert packed.contexts_N.tolist() == [chunk.stop for chunk in world.chunks]


def _running_sum(packed: PagedBatch) -> list[int]:
    counts = [span.count for span in packed.spans[packed.num_decoding :]]
    return [sum(counts[: n + 1]) for n in range(len(counts))]


def test_new_keys_land_in_their_own_slots_and_nowhere_else() -> None:
    world = World(BATCHES["mixed"], RULES["plain"], poison=7.5)
    world.attend()
    keys, _ = world.cache.slots(1)
    own = set()
    for chunk in world.chunks:
        for position in range(chunk.stop):
            slot = chunk.sequence.blocks[position // BLOCK] * BLOCK + position % BLOCK
            assert torch.equal(keys[slot], world.keys[chunk.sequence.id][position])
            own.add(slot)
    rest = [slot for slot in range(keys.shape[0]) if slot not in own]
    assert (keys[rest] == 7.5).all() and (world.cache.slots(0)[0] == 0).all()
