"""Copies on a stream of their own, on a real GPU: right bytes, whatever the compute stream is busy with."""

import random

import torch
from torch import Tensor

from adapters.bank import Bank, Loaded, Part
from adapters.lane import Lane
from adapters.manifest import AdapterId, Graft, Manifest
from adapters.op import LowRank
from tests.support.gpu import DEVICE, needs_gpu

pytestmark = needs_gpu

SIZE = 1 << 20
CYCLES = 20_000_000  # about 10 ms


def adapter(number: int) -> Loaded:
    """Filled with its own number, in page-locked memory."""
    id = AdapterId(str(number))
    flat = torch.full((2 * SIZE,), float(number)).pin_memory()
    low = LowRank(flat[:SIZE].view(16, -1), flat[SIZE:].view(16, -1), 1.0)
    graft = Graft("linear", SIZE // 16, SIZE // 16, 16, 1.0)
    return Loaded(Manifest(id, "lora", 16, ("linear",), (graft,), "float32", None), {"linear": Part(low)})


def test_a_copy_does_not_wait_for_what_is_being_computed() -> None:
    lane, host = Lane(DEVICE), torch.full((SIZE,), 7.0).pin_memory()
    lane.send([host])  # memory is found and libraries are loaded
    torch.cuda.synchronize()
    torch.cuda._sleep(20 * CYCLES)
    cargo = lane.send([host])
    mark = cargo._mark
    assert isinstance(mark, torch.cuda.Event)
    mark.synchronize()
    assert not torch.cuda.current_stream().query(), "the computing was over before the copy: sleep longer"
    cargo.claim()
    assert (cargo.tensors[0] == 7).all()


def test_first_use_sees_the_whole_copy_and_memory_is_not_given_away_too_early() -> None:
    """Adapters come and go while their products are still queued; a wrong byte would show in a sum."""
    chance, bank = random.Random(1), Bank(DEVICE)
    sums: list[tuple[int, Tensor]] = []
    there: list[int] = []
    for number in range(1, 120):
        bank.place(adapter(number))
        there.append(number)
        if chance.random() < 0.7:
            used = chance.choice(there)
            torch.cuda._sleep(CYCLES // 20)
            bank.claim(AdapterId(str(used)))
            part = bank.part(AdapterId(str(used)), "linear")
            assert part is not None
            sums.append((used, part.low.a_RI.double().sum() + part.low.b_RO.double().sum()))
        if len(there) > 3:
            bank.drop(AdapterId(str(there.pop(chance.randrange(len(there))))))
    for used, total in sums:
        assert float(total) == 2.0 * SIZE * used
