"""What the base's weights take, dense or in 4 bits.

Owns that sum. In 4 bits are the linear layers alone: embeddings, head, norms, routers and fused experts stay dense.
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
    """The largest 4-bit linear layer once it is dense, as every product with it needs it for a moment."""
    return max(linear.in_features * linear.out_features for linear in anatomy.linears) * itemsize
