"""A dense base whose linear layers are what the 4-bit ones stand for: where a QLoRA adapter was really trained.

Owns that loading. The result is an ordinary dense base; knows no adapters.
"""

from torch import nn

from loader.base import Base, load
from loader.progress import Progress, ignore
from loader.source import Source


def load_dequantized(source: Source, *, dtype: str, quantization: str, progress: Progress = ignore) -> Base:
    """Load the base on the CPU, quantize it as a server would, and put the values of its 4 bits into dense layers.

    Both forms are in memory until it returns. Raises what `loader.base.load` raises.
    """
    dense = load(source, dtype=dtype, device="cpu", progress=progress)
    quantized = load(source, dtype=dtype, quantization=quantization, device="cpu", progress=progress)
    from loader.quantize import is_quantized

    for path, module in dense.linears.items():
        if is_quantized(quantized.linears[path].weight):
            module.weight = nn.Parameter(quantized.weight(path), requires_grad=False)
    return dense
