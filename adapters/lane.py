"""Copies from host memory to the device, beside what the device computes.

Owns the order of a copy and its first use: the copy runs on a stream of its own, and whoever uses what it brings waits
for it there, not before. Knows tensors, not adapters.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Streams(Protocol):
    """The device's two queues: one for copies, one for everything else."""

    def copying(self) -> AbstractContextManager[object]:
        """Within it, work goes to the queue for copies, and memory comes from there."""

    def mark(self) -> object:
        """A mark behind what the queue for copies has been given so far."""

    def wait(self, mark: object) -> None:
        """Whatever the other queue is given from now on comes after the mark."""

    def keep(self, tensor: Tensor) -> None:
        """Let the tensor's memory go to nobody before the other queue has done what it has been given by then."""


class OneQueue:
    """For devices that copy and compute in the order they are told."""

    def copying(self) -> AbstractContextManager[object]:
        return nullcontext()

    def mark(self) -> object:
        return None

    def wait(self, mark: object) -> None:
        pass

    def keep(self, tensor: Tensor) -> None:
        pass


class CudaStreams:
    """A CUDA stream for copies beside the current one of whoever computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)

    def copying(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._copies)

    def mark(self) -> object:
        return self._copies.record_event()

    def wait(self, mark: object) -> None:
        assert isinstance(mark, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(mark)

    def keep(self, tensor: Tensor) -> None:
        tensor.record_stream(torch.cuda.current_stream(self._device))


@dataclass(frozen=True, slots=True)
class Cargo:
    """Tensors on the device, or on their way to it."""

    tensors: tuple[Tensor, ...]
    _mark: object
    _streams: Streams

    def claim(self) -> None:
        """Call before the first use, from where they are used."""
        self._streams.wait(self._mark)
        for tensor in self.tensors:
            self._streams.keep(tensor)


class Lane:
    """The way to one device. What is already there, it brings at once."""

    def __init__(self, device: torch.device, streams: Streams | None = None) -> None:
        self._device = device
        self._streams = streams or (CudaStreams(device) if device.type == "cuda" else OneQueue())

    def send(self, tensors: Sequence[Tensor]) -> Cargo:
        """Begin to copy; page-locked sources are read while others compute. torch keeps them until they are read."""
        with self._streams.copying():
            moved = tuple(tensor.to(self._device, non_blocking=True) for tensor in tensors)
        return Cargo(moved, self._streams.mark(), self._streams)
