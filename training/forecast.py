"""The predicted memory peak of this run, from before the base is loaded; the report has it beside the measured one.

Owns the longest sequence, and the choice of the figure that compares. The formulas are training/memory's.
"""

import torch

from loader import directory
from loader.anatomy import anatomy_of
from loader.errors import UnsupportedBase
from loader.memory import format_bytes
from loader.source import Source
from training.base import uses_bfloat16
from training.config import TrainConfig
from training.data.examples import Prepared, Prompt
from training.memory.plan import predict
from training.observer import Observer


def predicted_bytes(
    config: TrainConfig, source: Source, prepared: Prepared, device: torch.device, observer: Observer
) -> int:
    """The bytes that training/peak_memory.py should measure, also noted to `observer`; 0 where no plan can be made.

    Counts tensors on CUDA and the whole process on the CPU. Raises ConfigInvalid when the base lacks a layer that the
    config names.
    """
    cuda = device.type == "cuda"
    try:
        anatomy = anatomy_of(directory.read_json(source.path / "config.json"))
    except UnsupportedBase as error:
        observer.note(f"No memory plan: {error}")
        return 0
    bf16 = uses_bfloat16(config, device)
    plan = predict(config, anatomy, tokens=longest_sequence(config, prepared), bf16=bf16, cuda=cuda)
    found = plan.tensor_bytes if cuda else plan.total_bytes
    observer.note(f"predicted memory: {format_bytes(found)} at the peak ({plan.moment}); {plan.regime}")
    return found


def longest_sequence(config: TrainConfig, prepared: Prepared) -> int:
    """Tokens of the longest sequence that will be trained on, prompt and answer together."""
    if config.data.packing:
        return config.data.max_tokens
    return max(
        example.longest + (config.sampling.max_new_tokens if isinstance(example, Prompt) else 0)
        for example in prepared.train.examples
    )
