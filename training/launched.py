"""Which of several processes this is, under `accelerate launch` or torchrun; alone, it is the first of one.

Owns the reading of the launcher's environment. Imports no torch.
"""

import os


def is_first() -> bool:
    """The first process speaks, measures and writes for all."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Which of its machine's devices this process has."""
    return int(os.environ.get("LOCAL_RANK", "0"))
