"""The recorder that stands in for CUDA graphs notices whatever a graph would silently do wrong."""

from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor

from engine.recording import NotRecordable
from tests.support.recorder import Again

Work = Callable[[Tensor, int], object]

FRESH = [torch.full((8,), float(step)) for step in range(8)]
OTHER_NEXT_TIME: dict[str, Work] = {
    "a number": lambda memory, step: memory.fill_(step),
    "a shape": lambda memory, step: memory[: 2 + step].add_(1),
    "a place": lambda memory, step: memory[step : step + 2].add_(1),
    "an operation": lambda memory, step: memory.add_(1) if step % 2 else memory.mul_(1),
    "more operations": lambda memory, step: [memory.add_(1) for _ in range(step)],
    "fresh memory from the host": lambda memory, step: memory.copy_(FRESH[step]),
}


@pytest.mark.parametrize("what", OTHER_NEXT_TIME)
def test_what_is_another_next_time_is_no_recording(what: str) -> None:
    memory, steps = torch.zeros(8), count(1)

    def compute() -> None:
        OTHER_NEXT_TIME[what](memory, next(steps))

    replay = Again().record(compute)
    with pytest.raises((AssertionError, ValueError)):
        replay()


@pytest.mark.parametrize("asks", [float, bool, Tensor.nonzero], ids=["item", "truth", "nonzero"])
def test_what_asks_the_device_cannot_be_recorded(asks: Callable[[Tensor], object]) -> None:
    memory = torch.ones(1)

    def compute() -> None:
        asks(memory)

    with pytest.raises(NotRecordable):
        Again().record(compute)


def test_what_is_always_the_same_is_replayed_on_the_same_memory() -> None:
    memory, recorder = torch.zeros(8), Again()

    def compute() -> None:
        memory.add_(torch.arange(8) + memory.sum() * 0)

    replay = recorder.record(compute)
    before = memory.clone()
    replay()
    assert torch.equal(memory, before + torch.arange(8))
    assert (recorder.recorded, recorder.replayed) == (1, 1)
