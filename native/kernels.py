"""The compiled CPU kernels, as functions of tensors.

Owns the contract between Python and `cpp/`: every call's shapes, and which tensors it can take. Each has a plain torch
path beside it where it is used, which is its oracle and its fallback. Knows nothing of models or adapters.

Shape suffixes: T rows, I inputs, O outputs, R ranks, H query heads, K key/value heads, D head width.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from native.build import build
from native.errors import Unavailable

DTYPE = torch.bfloat16
"""What activations, weights, adapters and the cache are in; the kernels' sums are float32."""
MOST_GROUPS = 32
"""Query heads of one key/value head that `attend` can take."""
WIDEST_VECTOR = 16

Gains = Sequence[tuple[slice, Tensor]]
"""Rows, and the float32 vector `[out]` that their products are multiplied with."""

_Int = ctypes.c_int64
_Pointer = ctypes.c_void_p


class _Part(ctypes.Structure):
    _fields_ = [("a", _Pointer), ("b", _Pointer), ("rank", _Int), ("scaling", ctypes.c_double)]


class _Term(ctypes.Structure):
    _fields_ = [("start", _Int), ("stop", _Int), ("parts", _Pointer)]


class _Rows(ctypes.Structure):
    _fields_ = [("data", _Pointer), ("token", _Int), ("head", _Int)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("keys", _Pointer),
        ("values", _Pointer),
        ("heads", _Int),
        ("kv_heads", _Int),
        ("width", _Int),
        ("scaling", ctypes.c_float),
        ("window", _Int),
    ]


class _Batch(ctypes.Structure):
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


@dataclass(frozen=True, slots=True, eq=False)
class LowRankPart:
    """An adapter at one linear layer: `a_RI`, `b_RO` (B transposed), contiguous, and its scaling."""

    a_RI: Tensor
    b_RO: Tensor
    scaling: float


@dataclass(frozen=True, slots=True, eq=False)
class PartTable:
    """One adapter's parts by the number of the layer. Holds the tensors that it points at."""

    parts: Mapping[int, LowRankPart]
    entries: "ctypes.Array[_Part]"


@dataclass(frozen=True, slots=True, eq=False)
class TermTable:
    """Which rows belong to which adapter; at most one covers a row."""

    num_rows: int
    tables: tuple[PartTable, ...]
    entries: "ctypes.Array[_Term]"


@dataclass(frozen=True, slots=True, eq=False)
class SpanTable:
    """A step's sequences, as `attend` reads them. Holds the tensors that it points at."""

    held: tuple[Tensor, ...]
    entry: _Batch


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


class Kernels:
    """One compiled library."""

    def __init__(self, library: Path) -> None:
        """Raises Unavailable where the library does not load, such as under a torch without OpenMP."""
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as error:
            raise Unavailable(f"the compiled kernels do not load: {error}") from error
        signatures: Mapping[str, Sequence[Any]] = {
            "product_bf16": [_Pointer] * 6 + [_Int] * 3,
            "product_4bit": [_Pointer] * 6 + [ctypes.c_float] + [_Pointer] * 4 + [_Int] * 3,
            "low_rank_bf16": [_Pointer] * 3 + [_Int] * 5,
            "attend_bf16": [_Pointer] * 6,
            "rms_norm_bf16": [_Pointer] * 3 + [_Int] * 2 + [ctypes.c_float],
            "silu_product_bf16": [_Pointer] * 3 + [_Int],
            "rotate_bf16": [_Pointer] * 3 + [_Int] * 3,
        }
        for name, types in signatures.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = types, None

    @staticmethod
    def takes(*tensors: Tensor) -> bool:
        """Whether these tensors are in the kernels' precision and memory."""
        return all([tensor.dtype is DTYPE and tensor.is_cpu for tensor in tensors])  # asked hundreds of times a step

    def linear(
        self,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        plus_TO: Tensor | None = None,
        gains: Gains = (),
    ) -> Tensor:
        """`g * (x W^T + plus) + bias` for x `[..., in]`, rounded once; `plus` and each g `[out]` are float32."""
        x, weight_OI = x.contiguous(), weight_OI.contiguous()
        outputs, inputs = weight_OI.shape
        y = x.new_empty(*x.shape[:-1], outputs)
        rows = x.numel() // inputs
        self._library.product_bf16(
            x.data_ptr(),
            weight_OI.data_ptr(),
            _address(bias_O),
            _added(plus_TO, rows, outputs),
            _gain_table(gains, rows),
            y.data_ptr(),
            rows,
            outputs,
            inputs,
        )
        return y

    def linear_4bit(
        self,
        x: Tensor,
        weight: FourBitWeight,
        bias_O: Tensor | None,
        plus_TO: Tensor | None = None,
        gains: Gains = (),
    ) -> Tensor:
        """As `linear`, for a weight in 4 bits."""
        x, (outputs, inputs) = x.contiguous(), weight.shape
        y = x.new_empty(*x.shape[:-1], outputs)
        rows = x.numel() // inputs
        self._library.product_4bit(
            x.data_ptr(),
            weight.codes.data_ptr(),
            weight.values.data_ptr(),
            weight.scale_codes.data_ptr(),
            weight.scale_values.data_ptr(),
            weight.scale_scales.data_ptr(),
            weight.offset,
            _address(bias_O),
            _added(plus_TO, rows, outputs),
            _gain_table(gains, rows),
            y.data_ptr(),
            rows,
            outputs,
            inputs,
        )
        return y

    @staticmethod
    def part_table(parts: Mapping[int, LowRankPart], layers: int) -> PartTable:
        """One adapter's parts, by the number of the layer, below `layers`."""
        entries = (_Part * layers)()
        for layer, part in parts.items():
            assert part.a_RI.is_contiguous() and part.b_RO.is_contiguous() and Kernels.takes(part.a_RI, part.b_RO)
            entries[layer] = _Part(part.a_RI.data_ptr(), part.b_RO.data_ptr(), part.a_RI.shape[0], part.scaling)
        return PartTable(parts, entries)

    @staticmethod
    def term_table(terms: Sequence[tuple[int, int, PartTable]], num_rows: int) -> TermTable:
        """Rows `[start, stop)` of `num_rows` and the adapter they belong to."""
        entries = (_Term * len(terms))(
            *(_Term(start, stop, ctypes.addressof(table.entries)) for start, stop, table in terms)
        )
        return TermTable(num_rows, tuple(table for _, _, table in terms), entries)

    def low_rank(self, x_TI: Tensor, terms: TermTable, layer: int, outputs: int) -> Tensor:
        """`s_i (x[t] A_i^T) B_i^T` for each row t of each adapter i that has a part at `layer`, else 0; float32."""
        plus_TO = torch.zeros(terms.num_rows, outputs)
        x_TI = x_TI.contiguous()
        self._library.low_rank_bf16(
            x_TI.data_ptr(),
            plus_TO.data_ptr(),
            ctypes.addressof(terms.entries),
            len(terms.entries),
            layer,
            terms.num_rows,
            x_TI.shape[-1],
            outputs,
        )
        return plus_TO

    @staticmethod
    def span_table(slots_T: Tensor, starts: Tensor, counts: Tensor, contexts: Tensor, slots_NL: Tensor) -> SpanTable:
        """Where each token is written, and each sequence's first row, rows, positions and slots; all int64."""
        held = (slots_T, starts, counts, contexts, slots_NL)
        assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in held)
        entry = _Batch(
            slots_T.numel(),
            slots_T.data_ptr(),
            starts.numel(),
            starts.data_ptr(),
            counts.data_ptr(),
            contexts.data_ptr(),
            slots_NL.data_ptr(),
            slots_NL.shape[1],
        )
        return SpanTable(held, entry)

    @staticmethod
    def can_attend(query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor) -> bool:
        heads, _, width = query_HTD.shape
        groups = heads // key_KTD.shape[0]
        strided = all(tensor.stride(-1) == 1 for tensor in (query_HTD, key_KTD, value_KTD))
        even = width % WIDEST_VECTOR == 0 and value_KTD.shape[-1] == width and groups <= MOST_GROUPS
        return strided and even and Kernels.takes(query_HTD, key_KTD, value_KTD)

    def attend(
        self,
        query_HTD: Tensor,
        key_KTD: Tensor,
        value_KTD: Tensor,
        cache: tuple[Tensor, Tensor],
        spans: SpanTable,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Write the tokens' keys and values to the cache `[slots, K, D]`, and attend: `[T, H, D]`.

        A query sees its own position and those before it, `window` in all if given.
        """
        heads, tokens, width = query_HTD.shape
        keys, values = cache
        out = torch.empty(tokens, heads, width, dtype=DTYPE)
        layer = _Layer(keys.data_ptr(), values.data_ptr(), heads, key_KTD.shape[0], width, scaling, window or 0)
        query, key, value = _rows(query_HTD), _rows(key_KTD), _rows(value_KTD)
        self._library.attend_bf16(*map(ctypes.addressof, (spans.entry, query, key, value, layer)), out.data_ptr())
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """`w * bf16(x / sqrt(mean(x^2) + epsilon))` over the last dimension, as transformers' decoders round it."""
        x = x.contiguous()
        y = torch.empty_like(x)
        width = x.shape[-1]
        rows = x.numel() // width
        self._library.rms_norm_bf16(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, epsilon)
        return y

    def silu_product_(self, gate: Tensor, up: Tensor) -> Tensor:
        """`silu(gate) * up`, in the place of `gate`."""
        assert gate.is_contiguous() and gate.shape == up.shape
        up = up.contiguous()
        self._library.silu_product_bf16(gate.data_ptr(), up.data_ptr(), gate.data_ptr(), gate.numel())
        return gate

    def rotate_(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Rotary position embedding of every head in place, by halves: `x cos + (-x[D/2:], x[:D/2]) sin`."""
        assert x_THD.is_contiguous() and cos_TD.is_contiguous() and sin_TD.is_contiguous()
        assert cos_TD.shape == sin_TD.shape == (x_THD.shape[0], x_THD.shape[2])
        self._library.rotate_bf16(x_THD.data_ptr(), cos_TD.data_ptr(), sin_TD.data_ptr(), *x_THD.shape)
        return x_THD


def load(cache: Path) -> Kernels:
    """The kernels for this machine, compiled under `cache` if need be. Raises Unavailable with the reason."""
    return Kernels(build(cache))


def _rows(heads_TD: Tensor) -> _Rows:
    """A tensor `[heads, T, D]`, whatever its strides."""
    return _Rows(heads_TD.data_ptr(), heads_TD.stride(1), heads_TD.stride(0))


def _added(plus_TO: Tensor | None, rows: int, outputs: int) -> int | None:
    if plus_TO is None:
        return None
    assert plus_TO.shape == (rows, outputs) and plus_TO.dtype == torch.float32 and plus_TO.is_contiguous()
    return plus_TO.data_ptr()


def _gain_table(gains: Gains, rows: int) -> "ctypes.Array[_Pointer] | None":
    """For each row the address of its gain, or null."""
    if not gains:
        return None
    table = (_Pointer * rows)()
    for own, gain in gains:
        assert gain.dtype == torch.float32 and gain.is_contiguous()
        table[own] = [gain.data_ptr()] * (own.stop - own.start)
    return table


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
