"""Memory in large pages, for what every step reads whole on a CPU.

Owns where such bytes lie. Knows nothing of what they are.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

LARGE = 2 << 20
"""Bytes of a large page, and what is worth one. Of a system whose pages are larger nothing is lost but the gain."""
_LINE = 64


def empty(count: int, dtype: torch.dtype) -> Tensor:
    """`count` numbers in host memory, in large pages if they are enough for one and the system has any.

    With pages of 4 KiB the processor looks up where each lies, and does not read ahead from one into the next; under a
    hypervisor, steps that wait for memory take up to a third longer.
    """
    size = count * dtype.itemsize
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(count, dtype=dtype)
    region = mmap.mmap(-1, size + LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = -torch.frombuffer(region, dtype=torch.uint8).data_ptr() % LARGE
    with suppress(OSError):  # a kernel that was built without them
        region.madvise(mmap.MADV_HUGEPAGE, begin, size // LARGE * LARGE)
    return torch.frombuffer(region, dtype=dtype, count=count, offset=begin)


def places(shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]) -> Iterator[Tensor]:
    """A tensor of each shape, side by side in such memory, with nothing in it yet."""
    sizes = [prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
    ends = list(accumulate(-(-size // _LINE) * _LINE for size in sizes))
    room = empty(ends[-1], torch.uint8)
    for shape, dtype, size, begin in zip(shapes, dtypes, sizes, [0, *ends], strict=False):
        yield room[begin : begin + size].view(dtype).view(*shape)


def move(model: nn.Module) -> None:
    """Put the parameters of a model on a CPU into such memory. Those that were tied stay so."""
    parameters = list(model.parameters())
    room = places([parameter.shape for parameter in parameters], [parameter.dtype for parameter in parameters])
    for parameter, place in zip(parameters, room, strict=True):
        parameter.data = place.copy_(parameter.data)  # what was there before is let go at once
