"""The C structures that the compiled kernels read, in tables with the tensors that they point at.

Owns the memory layout that `cpp/` and Python share: each ctypes Structure here has its twin there. A table keeps its
tensors alive; the caller of a kernel must keep the table alive. Knows nothing of models or adapters.

Shape suffixes: T rows, I inputs, O outputs, R ranks, K key/value heads, D head width.
"""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPE = torch.bfloat16
"""The dtype of activations, weights, adapters and the cache. The kernels' sums are float32."""

Gains = Sequence[tuple[slice, Tensor]]
"""Ranges of rows, each with the float32 vector `[out]` that its products are multiplied with."""

_Int = ctypes.c_int64
_Pointer = ctypes.c_void_p


class Codes(ctypes.Structure):
    _fields_ = [
        ("data", _Pointer),
        ("values", _Pointer),
        ("scale_codes", _Pointer),
        ("scale_values", _Pointer),
        ("scale_scales", _Pointer),
        ("offset", ctypes.c_float),
    ]


class Linear(ctypes.Structure):
    _fields_ = [
        ("halves", _Pointer),
        ("codes", Codes),
        ("bias", _Pointer),
        ("outputs", _Int),
        ("inputs", _Int),
        ("number", _Int),
    ]


class Part(ctypes.Structure):
    _fields_ = [("a", _Pointer), ("b", _Pointer), ("gain", _Pointer), ("rank", _Int), ("scaling", ctypes.c_double)]


class Term(ctypes.Structure):
    _fields_ = [("start", _Int), ("stop", _Int), ("parts", _Pointer)]


class Move(ctypes.Structure):
    """`count` tensors `[rows, columns]` of a file, one every `step` numbers from `start`, and where they go: side by
    side from `to` on, each as it is or, if `transposed`, as `[columns, rows]`."""

    _fields_ = [(name, _Int) for name in ("start", "step", "to", "count", "rows", "columns", "transposed")]


class Rows(ctypes.Structure):
    _fields_ = [("data", _Pointer), ("token", _Int), ("head", _Int)]


class Cache(ctypes.Structure):
    _fields_ = [
        ("keys", _Pointer),
        ("values", _Pointer),
        ("heads", _Int),
        ("kv_heads", _Int),
        ("width", _Int),
        ("scaling", ctypes.c_float),
        ("window", _Int),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("tokens", _Int),
        ("slots_T", _Pointer),
        ("spans", _Int),
        ("starts", _Pointer),
        ("counts", _Pointer),
        ("contexts", _Pointer),
        ("slots_NL", _Pointer),
        ("slots_stride", _Int),
    ]


class Norm(ctypes.Structure):
    _fields_ = [("weight", _Pointer), ("epsilon", ctypes.c_float)]


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, Linear) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, Norm) for name in ("before_attention", "before_mlp", "of_queries", "of_keys")),
        ("cache", Cache),
    ]


@dataclass(frozen=True, slots=True, eq=False)
class FourBitWeight:
    """A weight `[out, in]` in bitsandbytes' layout: codes in blocks of 64, scales doubly quantized (arXiv 2305.14314).

    `codes` uint8 `[out * in / 2]`, `values` float32 `[16]`; block b's scale is `scale_values[scale_codes[b]] *
    scale_scales[b // 256] + offset`.
    """

    codes: Tensor
    values: Tensor
    scale_codes: Tensor
    scale_values: Tensor
    scale_scales: Tensor
    offset: float
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class LinearTable:
    """A linear layer's weight, in bf16 or in 4 bits, and its bias."""

    weight: Tensor | FourBitWeight
    bias: Tensor | None
    entry: Linear


@dataclass(frozen=True, slots=True, eq=False)
class LowRankPart:
    """An adapter at one linear layer: `a_RI`, `b_RO` (B transposed), its scaling, and DoRA's gain `[out]`."""

    a_RI: Tensor
    b_RO: Tensor
    scaling: float
    gain: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PartTable:
    """One adapter's parts by the number of the layer."""

    kept_alive: object
    entries: "ctypes.Array[Part]"


@dataclass(frozen=True, slots=True, eq=False)
class TermTable:
    """The row ranges of a batch, each with its adapter's parts. At most one range covers a row."""

    num_rows: int
    tables: tuple[PartTable, ...]
    entries: "ctypes.Array[Term]"


@dataclass(frozen=True, slots=True, eq=False)
class SpanTable:
    """A step's sequences, as attention reads them."""

    kept_alive: tuple[Tensor, ...]
    entry: Batch


@dataclass(frozen=True, slots=True)
class Heads:
    """How a layer attends: query heads, key/value heads, their width, the scaling of their products, and the window."""

    heads: int
    kv_heads: int
    width: int
    scaling: float
    window: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LayerTable:
    """A decoder layer's linears, norms and cache."""

    kept_alive: tuple[object, ...]
    entry: Layer


@dataclass(frozen=True, slots=True, eq=False)
class StackTable:
    """Decoder layers, one after the other."""

    layers: tuple[LayerTable, ...]
    entries: "ctypes.Array[ctypes.c_void_p]"


def linear_table(weight: Tensor | FourBitWeight, bias: Tensor | None, number: int = 0) -> LinearTable:
    """The table of a weight `[out, in]` and a bias `[out]`. `number`: the layer's index in the adapters' PartTables."""
    if isinstance(weight, FourBitWeight):
        parts = (weight.codes, weight.values, weight.scale_codes, weight.scale_values, weight.scale_scales)
        codes, halves = Codes(*(part.data_ptr() for part in parts), weight.offset), None
    else:
        codes, weight = Codes(), weight.contiguous()
        halves = weight.data_ptr()
    return LinearTable(weight, bias, Linear(halves, codes, address(bias), *weight.shape, number))


def part_table(parts: Mapping[int, LowRankPart], layers: int) -> PartTable:
    """The table of one adapter's parts by the number of the linear layer, of which there are `layers`."""
    entries = (Part * layers)()
    for layer, part in parts.items():
        assert all(one.is_contiguous() and one.dtype is DTYPE and one.is_cpu for one in (part.a_RI, part.b_RO))
        assert part.gain is None or part.gain.is_contiguous() and part.gain.dtype is torch.float32
        entries[layer] = Part(
            part.a_RI.data_ptr(), part.b_RO.data_ptr(), address(part.gain), part.a_RI.shape[0], part.scaling
        )
    return PartTable(parts, entries)


def packed_part_table(flat: Tensor, parts: Iterable[tuple[int, int, int, int, float]], layers: int) -> PartTable:
    """As `part_table`, of an adapter without gains whose factors lie in one allocation, each contiguous.

    `parts` are (layer, begin of A, begin of B, rank, scaling), the begins in elements of `flat`.
    """
    assert flat.is_contiguous() and flat.dtype is DTYPE and flat.is_cpu
    entries = (Part * layers)()
    start, size = flat.data_ptr(), flat.element_size()
    for layer, a, b, rank, scaling in parts:
        entries[layer] = Part(start + a * size, start + b * size, None, rank, scaling)
    return PartTable(flat, entries)


def term_table(terms: Sequence[tuple[int, int, PartTable]], num_rows: int) -> TermTable:
    """The table of (start, stop, parts): rows `[start, stop)` of the batch's `num_rows` belong to that adapter."""
    entries = (Term * len(terms))(*(Term(start, stop, ctypes.addressof(table.entries)) for start, stop, table in terms))
    return TermTable(num_rows, tuple(table for _, _, table in terms), entries)


def span_table(slots_T: Tensor, starts: Tensor, counts: Tensor, contexts: Tensor, slots_NL: Tensor) -> SpanTable:
    """The table of a step's N sequences; all tensors are int64 and contiguous.

    `slots_T`: the cache slot of each token. `starts`, `counts`, `contexts` `[N]`: each sequence's first row, number of
    rows, and number of positions with those rows. `slots_NL`: the slots of each sequence's positions.
    """
    tensors = (slots_T, starts, counts, contexts, slots_NL)
    assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in tensors)
    entry = Batch(
        slots_T.numel(),
        slots_T.data_ptr(),
        starts.numel(),
        starts.data_ptr(),
        counts.data_ptr(),
        contexts.data_ptr(),
        slots_NL.data_ptr(),
        slots_NL.shape[1],
    )
    return SpanTable(tensors, entry)


def cache_entry(cache: tuple[Tensor, Tensor], heads: Heads) -> Cache:
    """The structure of a layer's `cache`, keys and values `[slots, K, D]`, and of how it attends."""
    keys, values = cache
    return Cache(
        keys.data_ptr(),
        values.data_ptr(),
        heads.heads,
        heads.kv_heads,
        heads.width,
        heads.scaling,
        heads.window or 0,
    )


def layer_table(
    linears: Mapping[str, LinearTable],
    norms: Mapping[str, tuple[Tensor, float]],
    cache: tuple[Tensor, Tensor],
    heads: Heads,
) -> LayerTable:
    """`linears` by the names q, k, v, o, gate, up, down; `norms`, weight and epsilon, by the names of `Layer`.

    Norms before attention and MLP must be there; those of queries and keys may be.
    """
    entry = Layer(
        **{name: linear.entry for name, linear in linears.items()},
        **{name: Norm(weight.data_ptr(), epsilon) for name, (weight, epsilon) in norms.items()},
        cache=cache_entry(cache, heads),
    )
    return LayerTable((dict(linears), dict(norms), cache), entry)


def stack_table(layers: Sequence[LayerTable]) -> StackTable:
    addresses = (ctypes.addressof(layer.entry) for layer in layers)
    return StackTable(tuple(layers), (_Pointer * len(layers))(*addresses))


def gain_table(gains: Gains, rows: int) -> "ctypes.Array[ctypes.c_void_p] | None":
    """An array with the address of each row's gain, or null; None where there are no gains."""
    if not gains:
        return None
    table = (_Pointer * rows)()
    for own, gain in gains:
        assert gain.dtype == torch.float32 and gain.is_contiguous()
        table[own] = [gain.data_ptr()] * (own.stop - own.start)
    return table


def address(tensor: Tensor | None) -> int | None:
    """The tensor's data pointer; None, a null pointer in ctypes, where there is no tensor."""
    return None if tensor is None else tensor.data_ptr()
