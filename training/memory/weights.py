"""The memory of the base's weights, dense or in 4 bits.

Owns that sum. Only linear layers are quantized: embeddings, head, norms, routers and fused experts stay dense.
"""

from loader.anatomy import Anatomy, Layer
from loader.estimate import quantized_bytes
from loader.shape import LinearShape


def base_bytes(anatomy: Anatomy, itemsize: int, quantized: bool) -> int:
    """Bytes of all weights at `itemsize` bytes a dense number."""
    if not quantized:
        return anatomy.parameters * itemsize
    return dense_parameters(anatomy) * itemsize + sum(_in_4_bits(linear) for linear in anatomy.linears)


def dense_parameters(anatomy: Anatomy) -> int:
    """Parameters that stay dense when the base is quantized."""
    return anatomy.embeddings + anatomy.hidden + sum(_dense(layer) for layer in anatomy.stack)


def _dense(layer: Layer) -> int:
    biases = sum(linear.out_features for linear in layer.linears if linear.bias)
    return layer.expert_parameters + layer.others + biases


def _in_4_bits(linear: LinearShape) -> int:
    return quantized_bytes(linear.in_features * linear.out_features)


def dequantized_bytes(anatomy: Anatomy, itemsize: int) -> int:
    """Bytes of the largest linear layer once it is dequantized, as every product with it does for a moment."""
    return max(linear.in_features * linear.out_features for linear in anatomy.linears) * itemsize
