"""The product of activations with a half-precision weight, fast on CPUs that cannot multiply half precision.

Owns `linear` and the wrapper that puts it under a model's linear layers. Knows nothing of models or adapters.

Shapes: x `[..., in]`, weight `[out, in]`, bias `[out]`, result `[..., out]`, all of one dtype.
"""

from torch import nn


class TiledLinear(nn.Module):
    """A linear layer that computes with `linear`; it holds the very parameters of the layer it replaces."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
