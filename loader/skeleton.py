"""A base's shape without its weights, for checks that need no forward pass.

Owns the empty model. Reads the config only, so it takes seconds where loading takes long.
"""

import torch
from transformers import AutoModelForCausalLM

from loader import suitability
from loader.discover import shape_of
from loader.shape import BaseShape
from loader.source import Source


def shape(source: Source) -> BaseShape:
    """The graftable linears of the base in `source`, as `load` would find them. Raises UnsupportedBase."""
    config = suitability.config_of(source.path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    suitability.check_model(model)
    return shape_of(model, source.id)
