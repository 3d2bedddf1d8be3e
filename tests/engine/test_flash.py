"""How FlashAttention is called, found out by trying, and given the same batches as the plain way."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.flash import Flash, find
from engine.recording import NotRecordable
from tests.support.paged_world import World
from tests.support.varlen import PlainVarlen

CPU = torch.device("cpu")
HALF = torch.bfloat16


@pytest.mark.parametrize(
    "mood, found",
    [
        (PlainVarlen(), (False, True)),
        (PlainVarlen(wants_cu_seq_k=True), (True, True)),
        (PlainVarlen(knows_splits=False), (False, False)),
        (PlainVarlen(wants_cu_seq_k=True, knows_splits=False), (True, False)),
    ],
)
def test_the_first_way_that_works_is_taken(mood: PlainVarlen, found: tuple[bool, bool]) -> None:
    way = find(CPU, HALF, mood)
    assert way is not None and (way.give_cu_seq_k, way.one_split) == found


def test_a_way_that_gives_something_else_is_not_taken() -> None:
    spoilt = PlainVarlen(factor=1.1)
    assert find(CPU, HALF, spoilt) is None and spoilt.calls == 4, "each way was tried once and found wrong"
    nothing = PlainVarlen(factor=float("nan"))
    assert find(CPU, HALF, nothing) is None


def test_full_precision_is_not_even_tried() -> None:
    mood = PlainVarlen()
    assert find(CPU, torch.float32, mood) is None and mood.calls == 0


def test_the_call_is_one_that_torch_has() -> None:
    """No GPU here: at least names and places of the arguments must be torch's own."""
    from torch.nn.attention.varlen import varlen_attn

    seen: list[inspect.BoundArguments] = []

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(inspect.signature(varlen_attn).bind(*args, **kwargs))
        return torch.zeros(())

    assert find(CPU, HALF, attend) is None
    assert len(seen) == 4 and {"num_splits", "block_table", "seqused_k"} <= seen[0].arguments.keys()
    theirs, ours = (inspect.signature(call).parameters for call in (varlen_attn, PlainVarlen().__call__))
    assert [(p.name, p.kind) for p in theirs.values()] == [(p.name, p.kind) for p in ours.values()]


@pytest.mark.parametrize(
    "width, block, dtype, takes",
    [
        (8, 256, HALF, True), (128, 512, torch.float16, True), (8, 16, HALF, False), (12, 256, HALF, False),
        (264, 256, HALF, False), (8, 256, torch.float32, False),
    ],
)  # fmt: skip
def test_flash_attention_only_where_its_kernel_reads_the_blocks(
    width: int, block: int, dtype: torch.dtype, takes: bool
) -> None:
    assert Flash(PlainVarlen()).takes(torch.zeros(3, 4, width, dtype=dtype), block) is takes


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("counts", [[(300, 1), (5, 1), (255, 1)], [(300, 1), (0, 9), (250, 12)]])
def test_a_batch_means_the_same_to_flash_attention(counts: list[tuple[int, int]], window: int | None) -> None:
    world, varlen = World(counts), PlainVarlen()
    assert torch.allclose(world.attend(Flash(varlen), window), world.attend(None, window), atol=2e-2)
    assert varlen.calls == 1


def test_what_flash_attention_cannot_do_is_done_plainly_unless_it_is_recorded() -> None:
    world, varlen = World([(300, 1), (5, 1)]), PlainVarlen()
    capped = world.attend(Flash(varlen), None, softcap=0.1)
    assert torch.equal(capped, world.attend(None, None, softcap=0.1)) and varlen.calls == 0
    with pytest.raises(NotRecordable):
        world.attend(Flash(varlen), None, recorded=True, softcap=0.1)
