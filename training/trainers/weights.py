"""The weights that a run changes, kept in a safetensors file and put back.

Owns the best weights of a run and those it ended with. Knows nothing of trainers.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What learns, by name; a parameter that two modules share once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def keep(model: nn.Module, path: Path) -> None:
    """Write what learns to `path`, as it is, by one rename."""
    tensors: dict[str, Tensor] = {name: weight.detach().contiguous() for name, weight in trainable(model).items()}
    scratch = path.with_suffix(".new")
    save_file(tensors, scratch)
    scratch.replace(path)


@torch.no_grad()
def put_back(model: nn.Module, path: Path) -> None:
    """Give `model` the weights that `keep` wrote."""
    kept = load_file(path)
    weights = trainable(model)
    assert kept.keys() == weights.keys(), "the weights are another model's"
    for name, weight in weights.items():
        weight.copy_(kept[name])
