"""FlashAttention over the paged cache on a real GPU, against the plain way on the same GPU."""

from collections.abc import Sequence

import pytest
import torch

from engine.flash import find
from tests.support.gpu import DEVICE, needs_gpu
from tests.support.paged_world import World

pytestmark = needs_gpu

BATCHES = {
    "decode": [(300, 1), (5, 1), (255, 1), (0, 1)],
    "one": [(511, 1)],
    "prefill": [(0, 9), (0, 300)],
    "mixed": [(300, 1), (0, 9), (250, 12)],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_there_is_a_way_to_call_it(dtype: torch.dtype) -> None:
    """Which one is printed with -s: whether `cu_seq_k` must be given, and whether `num_splits` may be."""
    way = find(DEVICE, dtype)
    print(f"{dtype}: {way}")
    assert way is not None, "this torch cannot read a block table on this GPU; decode steps will not be recorded"


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", BATCHES)
def test_it_is_the_plain_way(batch: str, dtype: torch.dtype, window: int | None) -> None:
    world, way = World(BATCHES[batch], DEVICE, dtype), find(DEVICE, dtype)
    assert way is not None
    assert torch.allclose(world.attend(way, window), world.attend(None, window), atol=2e-2, rtol=2e-2)


def test_a_row_is_the_same_bits_in_any_decoding_batch() -> None:
    """What `num_splits=1` is for."""
    way = find(DEVICE, torch.bfloat16)
    assert way is not None
    if not way.one_split:
        pytest.skip("this torch takes no num_splits")
    together: Sequence[tuple[int, int]] = [(400, 1), (30, 1), (90, 1)]
    world = World(together, DEVICE)
    out = world.attend(way, None)
    alone = world.only(0)
    assert torch.equal(alone.attend(way, None)[0, 0], out[0, 0])
