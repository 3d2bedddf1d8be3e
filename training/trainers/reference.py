"""The base as its own reference: with the adapter switched off, it is what the run started from.

Owns the removal of trl's copy of the adapter.
"""

from peft import PeftModel
from torch import nn

COPY = "ref"
"""What trl calls the copy of an adapter that it takes for the reference."""


def refer_to_base(model: nn.Module) -> None:
    """Let trl compute references with the adapter switched off, instead of with a copy of the adapter.

    It makes the copy because an adapter that it is given might have been trained before. Ours begin as nothing (see
    `training.graft.graft`), so the base alone says the same, and memory and checkpoints do without the copy.
    """
    if isinstance(model, PeftModel) and COPY in model.peft_config:
        model.delete_adapter(COPY)
