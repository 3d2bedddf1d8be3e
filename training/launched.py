"""Which of several processes this is, under `accelerate launch` or torchrun; alone, it is the first of one.

Owns the reading of the launcher's environment. Imports no torch.
"""

import os
from collections.abc import MutableMapping

from training.errors import ConfigInvalid

FSDP = "ACCELERATE_USE_FSDP"
"""What a launcher sets when one base is to be spread over the processes."""
_NOT_DONE = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not supported: it takes over model, optimizer and checkpoints.",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported: it has models of its own.",
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params is not supported: a part of the base stays on each GPU.",
}


def is_first() -> bool:
    """The first process speaks, measures and writes for all."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Which of its machine's devices this process has."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def takes_over_fsdp(environment: MutableMapping[str, str]) -> bool:
    """Whether the launcher asks for FSDP, which training/sharding.py does; accelerate is not told of it.

    Accelerate would spread the adapters as well, and on a CPU nothing. Raises ConfigInvalid for what is not done.
    """
    faults = [fault for variable, fault in _NOT_DONE.items() if _is_set(environment, variable)]
    if faults:
        fix = "Launch with deploy/accelerate/fsdp.yaml or several-gpus.yaml."
        raise ConfigInvalid("The launcher's configuration", [f"{fault} {fix}" for fault in faults])
    asked = _is_set(environment, FSDP)
    environment.pop(FSDP, None)
    return asked and processes() > 1


def _is_set(environment: MutableMapping[str, str], variable: str) -> bool:
    return environment.get(variable, "false").lower() in ("true", "1")
