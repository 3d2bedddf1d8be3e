"""Attention whose rotation is compiled too, where a model's own computes nothing else.

Owns that replacement. Knows no architecture: whether a module may be replaced is found out by trying both on the same
rows. What follows the rotation is `attention.py`'s, or the same kernel.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.batch import PagedBatch, Span
from engine.kv_cache import KVCache
from loader.suitability import max_model_len
from native.kernels import Kernels
from native.tables import DTYPE, span_table

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
NORMS = {"q_norm", "k_norm"}
PROBED_ROWS = 5


class CompiledAttention(nn.Module):
    """`o(attend(rotate(q(x)), rotate(k(x)), v(x)))` with the very projections of the module it replaces.

    Where that one normalises every head's queries and keys before it rotates them, so does this one.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def __init__(self, original: nn.Module, kernels: Kernels) -> None:
        super().__init__()
        for name, module in original.named_children():
            self.add_module(name, module)
        self.layer_idx, self.head_dim = cast(int, original.layer_idx), cast(int, original.head_dim)
        self.scaling = cast(float, original.scaling)
        self._kernels = kernels

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], paged: PagedBatch, **unused: object
    ) -> tuple[Tensor, None]:
        assert paged.table is not None
        cos_TD, sin_TD = (part[0] for part in position_embeddings)
        query_THD = self._kernels.rotate_(self._normed("q_norm", self.q_proj(hidden_states)), cos_TD, sin_TD)
        key_TKD = self._kernels.rotate_(self._normed("k_norm", self.k_proj(hidden_states)), cos_TD, sin_TD)
        value_TKD = self.heads(self.v_proj(hidden_states))
        query, key, value = (rows.transpose(0, 1) for rows in (query_THD, key_TKD, value_TKD))
        slots = paged.cache.slots(self.layer_idx)
        out_THD = self._kernels.attend(query, key, value, slots, paged.table, self.scaling, None)
        return self.o_proj(out_THD.view(1, out_THD.shape[0], -1)), None

    def _normed(self, name: str, rows: Tensor) -> Tensor:
        heads_THD = self.heads(rows)
        norm = self._modules.get(name)
        return heads_THD if norm is None else cast(Tensor, norm(heads_THD))

    def heads(self, rows: Tensor) -> Tensor:
        """`[1, T, heads * D]` as `[T, heads, D]`."""
        return rows.view(rows.shape[1], -1, self.head_dim)


@torch.inference_mode()
def speed_up_attention(model: PreTrainedModel, cache: KVCache, kernels: Kernels | None) -> None:
    """Replace the attention modules of `model` that compute what CompiledAttention does, to the bit.

    `cache` is still empty: the trial writes to its first slots. Sliding windows are left to the models.
    """
    rotary = getattr(model.base_model, "rotary_emb", None)
    if kernels is None or rotary is None or getattr(model.config.get_text_config(), "sliding_window", None) is not None:
        return
    for path, module in list(model.named_modules()):
        if {name for name, _ in module.named_children()} - NORMS == PROJECTIONS and hasattr(module, "layer_idx"):
            compiled = CompiledAttention(module, kernels)
            if _agree(module, compiled, model, cache, kernels):
                model.set_submodule(path, compiled)


def _agree(
    original: nn.Module, replacement: CompiledAttention, model: PreTrainedModel, cache: KVCache, kernels: Kernels
) -> bool:
    x, inputs = probe(cast(int, original.get_submodule("q_proj").in_features), model, cache, kernels)
    cos, _ = inputs["position_embeddings"]
    if cos.shape != (1, PROBED_ROWS, replacement.head_dim) or not _kernels_take_heads(kernels, replacement, x):
        return False
    want, got = (module(hidden_states=x, **inputs)[0] for module in (original, replacement))
    return torch.equal(want, got)


def probed_positions(model: PreTrainedModel) -> Tensor:
    """From the first to the last that is served: what a model does to far ones alone has to be seen."""
    return torch.linspace(0, max_model_len(model.config) - 1, PROBED_ROWS, dtype=torch.float64).long()


def probe(width: int, model: PreTrainedModel, cache: KVCache, kernels: Kernels) -> tuple[Tensor, dict[str, Any]]:
    """A few random rows `[1, T, width]` of one sequence, and what else a decoder gives its layers."""
    x = torch.randn(1, PROBED_ROWS, width, generator=torch.Generator().manual_seed(0)).to(DTYPE)
    positions = probed_positions(model)[None]
    turned = cast(nn.Module, model.base_model.rotary_emb)(x, position_ids=positions)
    inputs = {"position_embeddings": turned, "attention_mask": None, "position_ids": positions}
    return x, {**inputs, "paged": one_sequence(cache, kernels)}


def _kernels_take_heads(kernels: Kernels, replacement: CompiledAttention, x: Tensor) -> bool:
    """Whether the kernel takes heads of this size and number."""
    query, key, value = (
        replacement.heads(linear(x)).transpose(0, 1)
        for linear in (replacement.q_proj, replacement.k_proj, replacement.v_proj)
    )
    return kernels.can_attend(query, key, value)


def one_sequence(cache: KVCache, kernels: Kernels) -> PagedBatch:
    """Of PROBED_ROWS positions, in the first slots of the cache."""
    slots_T, starts_N = torch.arange(PROBED_ROWS), torch.tensor([0, PROBED_ROWS])
    count = starts_N[1:]
    table = span_table(slots_T, starts_N[:1], count, count, slots_T[None])
    span = Span(0, PROBED_ROWS, PROBED_ROWS)
    blocks_NB = torch.zeros(1, 1, dtype=torch.int32)
    return PagedBatch(cache, (span,), 0, slots_T, slots_T[None], blocks_NB, count.int(), starts_N.int(), kernels, table)
