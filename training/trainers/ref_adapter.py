"""The reference model of preference and reinforcement objectives: the base, which is the model without its adapter.

Owns the removal of trl's copy of the adapter.
"""

from peft import PeftModel
from torch import nn

REF_ADAPTER = "ref"
"""trl's name for the copy of an adapter that it uses as the reference."""


def drop_ref_adapter(model: nn.Module) -> None:
    """Delete trl's copy of the adapter, so that it computes the reference with the adapter disabled.

    trl makes the copy because a given adapter may already be trained. Ours start without any effect (see
    `training.graft.graft`), so the base alone is the same reference, and the copy would only take memory.
    """
    if isinstance(model, PeftModel) and REF_ADAPTER in model.peft_config:
        model.delete_adapter(REF_ADAPTER)
