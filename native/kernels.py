"""The compiled CPU kernels as functions of tensors.

Owns the contract between Python and `cpp/`: the shapes of every call, and the tensors it supports. Wherever a kernel is
used there is also a plain torch path, its oracle and fallback. Knows nothing of models or adapters.

Shape suffixes: T rows, I inputs, O outputs, H query heads, K key/value heads, D head width.
"""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from native.build import Arithmetic, build
from native.errors import NoTiles, Unavailable
from native.tables import (
    DTYPE,
    FourBitWeight,
    Gains,
    Heads,
    Move,
    Rows,
    SpanTable,
    StackTable,
    TermTable,
    cache_entry,
    gain_table,
    linear_table,
)

MOST_GROUPS = 32
"""Query heads of one key/value head that `attend` can take."""
WIDEST_VECTOR = 16

_PACKERS = {torch.float32: "pack_floats", torch.float16: "pack_halves", torch.bfloat16: "pack_bf16"}

_Int = ctypes.c_int64
_Pointer = ctypes.c_void_p


class Kernels:
    """The functions of one compiled library."""

    def __init__(self, library: Path) -> None:
        """Raises Unavailable where the library does not load, such as under a torch without OpenMP."""
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as error:
            raise Unavailable(f"the compiled kernels do not load: {error}") from error
        if not self._library.tiles_usable():
            raise NoTiles("the operating system does not let this process use the processor's tiles")
        self._packers: dict[torch.dtype, Any] = {}
        signatures: Mapping[str, Sequence[Any]] = {
            "product_bf16": [_Pointer] * 5 + [_Int],
            "low_rank_bf16": [_Pointer] * 3 + [_Int] * 5,
            "attend_bf16": [_Pointer] * 6,
            "decoder_layers_bf16": [_Pointer, _Int, _Pointer, _Pointer, _Int] + [_Pointer] * 5,
            "rms_norm_bf16": [_Pointer] * 3 + [_Int] * 2 + [ctypes.c_float],
            "silu_product_bf16": [_Pointer] * 3 + [_Int],
            "rotate_bf16": [_Pointer] * 3 + [_Int] * 3,
            "release_threads": [],
            "work_alone": [],
        }
        for name, types in signatures.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = types, None
        for dtype, name in _PACKERS.items():
            packer = getattr(self._library, name)
            packer.argtypes, packer.restype = [_Pointer, _Pointer, _Int, _Pointer], ctypes.c_float
            self._packers[dtype] = packer

    @staticmethod
    def takes(*tensors: Tensor) -> bool:
        """Whether these tensors are in the kernels' dtype and on the CPU."""
        return all([tensor.dtype is DTYPE and tensor.is_cpu for tensor in tensors])  # asked hundreds of times a step

    def release_threads(self) -> None:
        """End the calling thread's OpenMP pool, because another thread will compute from now on.

        torch's and the kernels' pools are the same. Where all pools together have more threads than there are
        processors, every wait of one thread for the others becomes a sleep, several hundred times a step.
        """
        self._library.release_threads()

    def work_alone(self) -> None:
        """Let the calling thread compute alone from now on, without a pool of its own."""
        self._library.work_alone()

    def pack(self, stored: Tensor, moves: Sequence[Move], into: Tensor) -> float:
        """Round tensors of `stored`, in float32, float16 or bf16, to where they go in `into`; by one thread.

        Returns the largest magnitude there: infinite where a number is infinite in bf16, or is none.
        """
        assert stored.is_contiguous() and stored.is_cpu and into.is_contiguous() and self.takes(into)
        for move in moves:
            size = move.rows * move.columns
            assert move.start + (move.count - 1) * move.step + size <= len(stored), "it lies within the file's numbers"
            assert move.to + move.count * size <= len(into), "and goes where there is room"
        table = (Move * len(moves))(*moves)
        packer = self._packers[stored.dtype]
        largest: float = packer(stored.data_ptr(), ctypes.addressof(table), len(moves), into.data_ptr())
        return largest

    def linear(
        self,
        x: Tensor,
        weight: Tensor | FourBitWeight,
        bias_O: Tensor | None,
        plus_TO: Tensor | None = None,
        gains: Gains = (),
    ) -> Tensor:
        """`g * (x W^T + plus) + bias` for x `[..., in]`, rounded once; `plus` and each g `[out]` are float32."""
        x, (outputs, inputs) = x.contiguous(), weight.shape
        y = x.new_empty(*x.shape[:-1], outputs)
        rows = x.numel() // inputs
        table = linear_table(weight, bias_O)
        self._library.product_bf16(
            x.data_ptr(),
            ctypes.addressof(table.entry),
            _plus_address(plus_TO, rows, outputs),
            gain_table(gains, rows),
            y.data_ptr(),
            rows,
        )
        return y

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
    def can_attend(query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor) -> bool:
        """Whether `attend` supports these tensors: their dtype, strides, heads and widths."""
        heads, _, width = query_HTD.shape
        strided = all(tensor.stride(-1) == 1 for tensor in (query_HTD, key_KTD, value_KTD))
        even = Kernels.can_take(heads, key_KTD.shape[0], width) and value_KTD.shape[-1] == width
        return strided and even and Kernels.takes(query_HTD, key_KTD, value_KTD)

    @staticmethod
    def can_take(heads: int, kv_heads: int, width: int) -> bool:
        """Whether `attend` supports this number and width of heads."""
        return width % WIDEST_VECTOR == 0 and heads // kv_heads <= MOST_GROUPS

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
        """Write the tokens' keys and values to the cache `[slots, K, D]`, and return their attention `[T, H, D]`.

        A query sees its own position and those before it; with `window`, that many in all.
        """
        heads, tokens, width = query_HTD.shape
        out = torch.empty(tokens, heads, width, dtype=DTYPE)
        layer = cache_entry(cache, Heads(heads, key_KTD.shape[0], width, scaling, window))
        query, key, value = _rows(query_HTD), _rows(key_KTD), _rows(value_KTD)
        self._library.attend_bf16(*map(ctypes.addressof, (spans.entry, query, key, value, layer)), out.data_ptr())
        return out

    def decoder_layers(
        self, x_TI: Tensor, layers: StackTable, spans: SpanTable, terms: TermTable, cos_TD: Tensor, sin_TD: Tensor
    ) -> Tensor:
        """Whole decoder layers as Llama has them, one after the other, with the terms of adapters at their linears.

        Each is `a = x + O attend(rotate(Q n), rotate(K n), V n)` with `n = norm(x)`; `a + D (silu(G m) * U m)` with
        `m = norm(a)`. Writes keys and values to the layers' caches, as `attend`.
        """
        assert x_TI.is_contiguous() and cos_TD.is_contiguous() and sin_TD.is_contiguous()
        y_TI, between_TI = torch.empty_like(x_TI), torch.empty_like(x_TI)
        self._library.decoder_layers_bf16(
            ctypes.addressof(layers.entries),
            len(layers.entries),
            ctypes.addressof(spans.entry),
            ctypes.addressof(terms.entries),
            len(terms.entries),
            cos_TD.data_ptr(),
            sin_TD.data_ptr(),
            x_TI.data_ptr(),
            between_TI.data_ptr(),
            y_TI.data_ptr(),
        )
        return y_TI

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """`w * bf16(x / sqrt(mean(x^2) + epsilon))` over the last dimension, as transformers' decoders round it."""
        x = x.contiguous()
        y = torch.empty_like(x)
        width = x.shape[-1]
        rows = x.numel() // width
        self._library.rms_norm_bf16(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, epsilon)
        return y

    def silu_product_(self, gate: Tensor, up: Tensor) -> Tensor:
        """`silu(gate) * up`, written to `gate` and returned."""
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


def load(cache: Path, arithmetic: Arithmetic | None = None) -> Kernels:
    """The kernels for this machine, compiled under `cache` if need be; `arithmetic` as in `build`.

    Raises Unavailable with the reason.
    """
    library = build(cache, arithmetic)
    try:
        return Kernels(library)
    except NoTiles:
        if arithmetic is not None:
            raise
        return Kernels(build(cache, Arithmetic.FLOATS))


def _rows(heads_TD: Tensor) -> Rows:
    """A tensor `[heads, T, D]`, whatever its strides."""
    return Rows(heads_TD.data_ptr(), heads_TD.stride(1), heads_TD.stride(0))


def _plus_address(plus_TO: Tensor | None, rows: int, outputs: int) -> int | None:
    if plus_TO is None:
        return None
    assert plus_TO.shape == (rows, outputs) and plus_TO.dtype == torch.float32 and plus_TO.is_contiguous()
    return plus_TO.data_ptr()
