"""Which weights of a loaded model can carry an adapter, and which look as if they could but cannot.

Owns the walk over the modules. Knows nothing of adapters; it hands out shapes and reasons.
"""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from loader.product import FastLinear
from loader.shape import BaseShape, LinearShape

FUSED = "its experts are fused into one 3-dimensional weight, which takes no adapter; adapt the attention layers"
EMBEDDING = "adapters on embeddings are not supported; adapt linear layers"
NOT_LINEAR = "it is a bare weight and no linear layer (a router, most often), which takes no adapter"


def shape_of(model: PreTrainedModel, base_id: str) -> BaseShape:
    """The graftable linears of `model` by module path, the head included, and the refused weights with reasons.

    Routers that are linear layers are graftable, as they are for PEFT; routers that are bare weights are refused.
    """
    linears = {path: _shape(path, module) for path, module in linear_modules(model)}
    return BaseShape(
        base_id=base_id,
        num_layers=int(model.config.get_text_config().num_hidden_layers),
        linears=linears,
        refused=dict(_refused(model)),
    )


def linear_modules(model: nn.Module) -> Iterator[tuple[str, nn.Linear | FastLinear]]:
    """Every linear layer with its path in `model.named_modules()`; bitsandbytes' layers are linears too."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | FastLinear):
            yield path, module


def _shape(path: str, module: nn.Linear | FastLinear) -> LinearShape:
    return LinearShape(path, module.in_features, module.out_features, bias=module.bias is not None)


def _refused(model: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | FastLinear):
            continue
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                yield path, EMBEDDING
            elif weight.dim() >= 3:
                yield f"{path}.{name}", FUSED
            elif weight.dim() == 2:
                yield path if name == "weight" else f"{path}.{name}", NOT_LINEAR
