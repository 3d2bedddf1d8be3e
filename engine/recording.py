"""Recording what a step makes the device do, and making it do that again: CUDA graphs, and the seam before them.

Owns the protocol and its one implementation on CUDA. Knows nothing of models; what is recorded must keep its tensors
where they are and ask the device for nothing.
"""

from collections.abc import Callable
from typing import Protocol

import torch

Replay = Callable[[], None]


class NotRecordable(RuntimeError):
    """What was to be recorded would not be right, or far too slow, when it is replayed with other rows."""


class Recorder(Protocol):
    def record(self, compute: Callable[[], None]) -> Replay:
        """Run `compute` at least once, and give back what does the same again on the same memory.

        Raises RuntimeError, of which NotRecordable is one, where that cannot be.
        """


class CudaGraphs:
    """Every recording is a CUDA graph; all share one pool of memory, since only one is ever replayed at a time.

    What a recording computes must be copied to memory of the caller's own: the next replay may overwrite the rest.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], None]) -> Replay:
        """The first run is not recorded: libraries make their handles and choose their kernels in it."""
        with torch.cuda.device(self._device):
            now = torch.cuda.current_stream()
            self._stream.wait_stream(now)
            with torch.cuda.stream(self._stream):
                compute()
            now.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads read adapters into page-locked memory meanwhile: none of this recording's business.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    compute()
            finally:
                torch.cuda.set_stream(now)  # where a recording fails, torch leaves its stream in place
        return graph.replay
