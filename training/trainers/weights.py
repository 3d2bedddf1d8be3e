"""Saving and loading the trainable weights of a model.

Owns the safetensors files of a run's best and last weights. Knows nothing of trainers.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name; a shared parameter once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_trainable(model: nn.Module, path: Path) -> None:
    """Write the trainable parameters of `model` to `path` in their own precision, by one rename."""
    weights = trainable_parameters(model)
    tensors: dict[str, Tensor] = {name: weight.detach().contiguous() for name, weight in weights.items()}
    scratch = path.with_suffix(".new")
    save_file(tensors, scratch)
    scratch.replace(path)


@torch.no_grad()
def load_trainable(model: nn.Module, path: Path) -> None:
    """Copy the weights that `save_trainable` wrote back into `model`."""
    kept = load_file(path)
    weights = trainable_parameters(model)
    assert kept.keys() == weights.keys(), "the weights are another model's"
    for name, weight in weights.items():
        weight.copy_(kept[name])
