"""Which of several processes this is, under `accelerate launch` or torchrun; alone, it is the first of one.

Owns the reading of the launcher's environment. Imports no torch.
"""

import os
from collections.abc import Mapping

from training.errors import ConfigInvalid

_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What a launcher sets when it would spread one model over several processes."""


def is_first() -> bool:
    """The first process speaks, measures and writes for all."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Which of its machine's devices this process has."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def check_launcher(environment: Mapping[str, str]) -> None:
    """Refuse launchers that spread one model's weights: the first process measures and writes a whole model alone.

    Unrefused, it would wait forever for the others' parts. Raises ConfigInvalid.
    """
    for variable, name in _SHARDING.items():
        if environment.get(variable, "false").lower() in ("true", "1"):
            fault = (
                f"{name} spreads a model over the processes; here each process holds the whole base. Launch with "
                "deploy/accelerate/several-gpus.yaml, and choose method: qlora if the base is large."
            )
            raise ConfigInvalid("The launcher", [fault])
