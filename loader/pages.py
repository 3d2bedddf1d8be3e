"""Memory in large pages, for what steps read on a CPU: weights, keys and values, adapters.

Owns where such bytes lie. Computes nothing with them.
"""

import mmap
import threading
import weakref
from contextlib import suppress
from itertools import accumulate

import torch
from torch import Tensor, nn

LARGE = 2 << 20
"""Bytes of a large page, and what is worth one. Of a system whose pages are larger nothing is lost but the gain."""
_LINE = 64
_GOLDEN = 0.618


def empty(count: int, dtype: torch.dtype) -> Tensor:
    """`count` numbers in host memory, in large pages if they are enough for one and the system has any.

    With pages of 4 KiB the processor looks up where each lies, and does not read ahead from one into the next:
    docs/performance.md says what that costs.
    """
    return zeros(count, dtype) if count * dtype.itemsize >= LARGE else torch.empty(count, dtype=dtype)


def zeros(count: int, dtype: torch.dtype) -> Tensor:
    """The same, zero, in pages that the system gives when they are first written to. At least one number."""
    return torch.frombuffer(_region(count * dtype.itemsize), dtype=dtype, count=count)


def apart(count: int, dtype: torch.dtype, number: int) -> list[Tensor]:
    """As many tensors of `count` zeros each as `number` says, for what fills all of them from the front at one pace.

    A large page that nobody had takes milliseconds to get, and each tensor needs the next one after as many numbers. So
    they lie in such a way that their pages do not end together: at steps of the golden ratio of a page, which divide it
    evenly, however many there are.
    """
    size = count * dtype.itemsize
    if size < LARGE:
        return [zeros(count, dtype) for _ in range(number)]
    step = size + (int(LARGE * _GOLDEN) // _LINE * _LINE - size) % LARGE
    region = _region(number * step)
    return [torch.frombuffer(region, dtype=dtype, count=count, offset=index * step) for index in range(number)]


class Pool:
    """The same memory again and again, for what comes and goes: the system fills a large page with zeros before it
    gives it, and where none is free, tens of milliseconds go by until it has made one.

    Keeps what came back last, up to `limit` bytes. Safe to use from many threads.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: dict[int, memoryview] = {}
        self._lock = threading.RLock()  # memory may come back to a thread that is about to take some

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        """As `pages.empty`; the memory comes back when the last tensor on it is gone."""
        size = count * dtype.itemsize
        if size < LARGE:
            return torch.empty(count, dtype=dtype)
        region = self._take(size)
        if region is None:
            region = _region(size)
        lent = region[:]
        weakref.finalize(lent, self._give_back, region).atexit = False
        return torch.frombuffer(lent, dtype=dtype, count=count)

    def _take(self, size: int) -> memoryview | None:
        """One that has room for `size` bytes, and little more."""
        with self._lock:
            fits = (key for key, region in list(self._free.items()) if size <= len(region) <= size + size // 8)
            return self._free.pop(next(fits, 0), None)

    def _give_back(self, region: memoryview) -> None:
        if len(region) > self._limit:
            return
        with self._lock:
            self._free[id(region)] = region
            while sum(map(len, list(self._free.values()))) > self._limit:
                del self._free[next(iter(self._free))]


def _region(size: int) -> memoryview:
    """Fresh memory that begins at a large page."""
    region = mmap.mmap(-1, size + LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = -torch.frombuffer(region, dtype=torch.uint8).data_ptr() % LARGE
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= LARGE:
        with suppress(OSError):  # a kernel that was built without them
            region.madvise(mmap.MADV_HUGEPAGE, begin, size // LARGE * LARGE)
    return memoryview(region)[begin : begin + size]


def gather(tensors: list[Tensor]) -> None:
    """Put tensors into such memory, side by side. Each is replaced in the list, and let go, as soon as it is copied."""
    ends = list(accumulate(-(-tensor.nbytes // _LINE) * _LINE for tensor in tensors))
    room = empty(ends[-1], torch.uint8)
    for index, begin in enumerate([0, *ends[:-1]]):
        old = tensors[index]
        place = room[begin : begin + old.nbytes].view(old.dtype).view(old.shape)
        tensors[index] = place.copy_(old)


def move(model: nn.Module) -> None:
    """The same with the parameters of a model on a CPU. Those that were tied stay so."""
    parameters = list(model.parameters())
    weights = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.new_empty(0)  # the list alone holds what was there
    gather(weights)
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.data = weight
