"""The memory plan of this run, told before the base is loaded, so that the measured peak can be held against it.

Owns the longest sequence and the choice of what is comparable. The formulas are training/memory's.
"""

import torch

from loader import directory
from loader.anatomy import anatomy_of
from loader.errors import UnsupportedBase
from loader.memory import format_bytes
from loader.source import Source
from training.base import uses_bfloat16
from training.config import TrainConfig
from training.data.examples import Example, Pair, Prepared
from training.memory.plan import predict
from training.watch import Watch


def predicted_bytes(config: TrainConfig, source: Source, prepared: Prepared, device: torch.device, watch: Watch) -> int:
    """What training/peak.py should find: tensors on CUDA, the whole process on the CPU. 0 where no plan can be made.

    Raises ConfigInvalid when the base has not the layers that the config names.
    """
    cuda = device.type == "cuda"
    try:
        anatomy = anatomy_of(directory.read_json(source.path / "config.json"))
    except UnsupportedBase as error:
        watch.note(f"No memory plan: {error}")
        return 0
    bf16 = uses_bfloat16(config, device)
    plan = predict(config, anatomy, tokens=longest(config, prepared), bf16=bf16, cuda=cuda)
    found = plan.tensor_bytes if cuda else plan.total_bytes
    watch.note(f"predicted memory: {format_bytes(found)} at the peak ({plan.moment}); {plan.regime}")
    return found


def longest(config: TrainConfig, prepared: Prepared) -> int:
    """Tokens of the longest sequence that will be trained on, prompt and answer together."""
    if config.data.packing:
        return config.data.max_tokens
    lengths = []
    for one in prepared.train.examples:
        if isinstance(one, Pair):
            lengths.append(len(one.prompt_ids) + max(len(one.chosen_ids), len(one.rejected_ids)))
        else:
            lengths.append(len(one.ids) + (0 if isinstance(one, Example) else config.sampling.max_new_tokens))
    return max(lengths)
