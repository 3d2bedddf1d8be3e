"""How large a base will be once loaded, told from its safetensors headers alone.

Owns the estimate for the memory plan. Imports no torch and reads no weights.
"""

from math import prod
from pathlib import Path

from loader.dtypes import ITEM_BYTES, Dtype
from loader.tensors import stored

BLOCK = 64
"""Weights that share one scale in bitsandbytes' 4-bit format; the scales are 8-bit in turn, 256 to a float32."""
NESTED = 256
CODE_BOOKS = 16 * 4 + 256 * 4 + 4


def base_bytes(path: Path, dtype: Dtype, quantization: str | None) -> int:
    """Bytes the weights of the base in `path` will take in `dtype`, the linear layers in 4 bits if quantized."""
    itemsize = ITEM_BYTES[dtype]
    return sum(
        quantized_bytes(prod(shape)) if quantization and _is_linear(name, shape) else prod(shape) * itemsize
        for name, shape in ((tensor.name, tensor.shape) for tensor in stored(path))
    )


def quantized_bytes(elements: int) -> int:
    """Bytes of one weight in 4 bits with doubly quantized scales: 4.127 bits a number, and the code books."""
    blocks = -(-elements // BLOCK)
    return (elements + 1) // 2 + blocks + 4 * -(-blocks // NESTED) + CODE_BOOKS


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Embeddings and head stay dense when quantized; so do experts, which transformers fuses, and their routers."""
    dense = ("embed", "lm_head", ".experts.", "mlp.gate.", "block_sparse_moe.gate.")
    return len(shape) == 2 and name.endswith(".weight") and not any(word in name for word in dense)
