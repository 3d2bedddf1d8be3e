"""The memory of the optimizer's states: AdamW's two moments of every trained number.

Owns that sum. bitsandbytes quantizes moments in blocks of 256 numbers, leaves tensors under 4096 numbers in fp32, and
pages out those of 100,000 and more.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from loader.anatomy import Anatomy, Layer
from training.memory.grafts import Graft
from training.memory.regime import FP32

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
SMALL, PAGED = 4096, 100_000
BLOCK = 256
CODEBOOKS = 2 * 256 * FP32
"""Bytes of a tensor's two tables of 256 values, one for each moment."""


@dataclass(frozen=True, slots=True)
class OptimizerStates:
    """Bytes of the moments on the device, and of those that the driver may move to the host."""

    device: int
    pageable: int


def trained_tensors(anatomy: Anatomy, grafts: Sequence[Graft], full: bool) -> tuple[int, ...]:
    """The number of elements of each trained tensor."""
    if full:
        return tuple(_all_tensors(anatomy))
    return tuple(size for graft in grafts for size in graft.tensors)


def _all_tensors(anatomy: Anatomy) -> Iterator[int]:
    yield from [anatomy.vocab * anatomy.hidden] * (1 if anatomy.tied else 2)
    yield anatomy.hidden
    for layer in anatomy.stack:
        yield from _layer_tensors(layer, anatomy.hidden)


def _layer_tensors(layer: Layer, hidden: int) -> Iterator[int]:
    for linear in layer.linears:
        yield linear.in_features * linear.out_features
        if linear.bias:
            yield linear.out_features
    if layer.experts is not None:
        yield layer.expert_parameters * 2 // 3
        yield layer.expert_parameters // 3
    yield from [hidden] * (layer.others // hidden)
    yield layer.others % hidden


def optimizer_states(name: OptimizerName, tensors: Iterable[int], itemsize: int, cuda: bool) -> OptimizerStates:
    """Bytes of the moments, in the trained weights' precision of `itemsize` bytes or in 8 bits. Only CUDA pages."""
    if name == "adamw":
        return OptimizerStates(2 * itemsize * sum(tensors), 0)
    sizes = list(tensors)
    paged = name == "paged_adamw_8bit" and cuda
    pageable = sum(_in_8_bits(size) for size in sizes if paged and size >= PAGED)
    return OptimizerStates(sum(map(_in_8_bits, sizes)) - pageable, pageable)


def _in_8_bits(size: int) -> int:
    if size < SMALL:
        return 2 * FP32 * size
    return 2 * (size + FP32 * -(-size // BLOCK)) + CODEBOOKS
