"""This process's rank under `accelerate launch` or torchrun; without a launcher it is the main process of one.

Owns the reading of the launcher's environment. Imports no torch.
"""

import os
from collections.abc import MutableMapping

from training.errors import ConfigInvalid

FSDP = "ACCELERATE_USE_FSDP"
"""The variable by which a launcher asks for FSDP."""
_UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not supported: it takes over model, optimizer and checkpoints.",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported: it has models of its own.",
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params is not supported: a part of the base stays on each GPU.",
}


def is_main_process() -> bool:
    """Whether this is rank 0, which reports, evaluates and writes for all."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """The number of processes of the launch, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """The index of this process's device on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def take_over_fsdp(environment: MutableMapping[str, str]) -> bool:
    """Remove the launcher's request for FSDP from `environment`; returns whether there was one, of several processes.

    training/sharding.py does the sharding. Accelerate must not see the request: it would shard the adapters as well,
    and on a CPU nothing. Raises ConfigInvalid for what is not supported.
    """
    faults = [fault for variable, fault in _UNSUPPORTED.items() if _is_set(environment, variable)]
    if faults:
        fix = "Launch with deploy/accelerate/fsdp.yaml or several-gpus.yaml."
        raise ConfigInvalid("The launcher's configuration", [f"{fault} {fix}" for fault in faults])
    asked = _is_set(environment, FSDP)
    environment.pop(FSDP, None)
    return asked and world_size() > 1


def _is_set(environment: MutableMapping[str, str], variable: str) -> bool:
    return environment.get(variable, "false").lower() in ("true", "1")
