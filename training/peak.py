"""How much memory the run has taken at its peak.

Owns that one measurement: of CUDA memory as torch allocated it, else of the process as the kernel counted it.
"""

import resource
import sys

import torch


def peak_bytes() -> int:
    """Bytes at the highest point of this process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
