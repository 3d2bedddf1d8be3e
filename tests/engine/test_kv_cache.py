"""The memory that blocks number: zero at first, kept as it is written, and taken from the system only then."""

import psutil
import torch

from engine.kv_cache import KVCache
from loader.plan import KVLayer

MEBI = 1 << 20


def test_a_cache_takes_memory_as_it_fills() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    cache = KVCache([KVLayer(2, 64)] * 4, 16384, 16, torch.bfloat16, torch.device("cpu"))
    assert cache.num_bytes == 512 * MEBI
    assert process.memory_info().rss - before < 64 * MEBI
    slots, rows = torch.tensor([0, 262143]), torch.randn(2, 2, 64).bfloat16()
    cache.write(3, slots, rows, -rows)
    keys, values = cache.slots(3)
    assert torch.equal(keys[slots], rows) and torch.equal(values[slots], -rows)
    assert not cache.slots(2)[0][slots].any() and not keys[1].any()
    assert process.memory_info().rss - before < 64 * MEBI
