"""Attention over the paged cache, in the shape transformers calls it.

Owns the one function that writes this step's keys and values and reads each sequence's context. Its plain
definition is softmax(q k^T * scaling) v over the positions a query may see; everything else here is speed.

Shape suffixes: T packed tokens, N sequences, H query heads, K key/value heads, G = H / K, L context, D head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.batch import PagedBatch, Span
from engine.recording import NotRecordable

NAME = "rootstock"


def register() -> None:
    """Make `model.set_attn_implementation(NAME)` possible. Doing it twice changes nothing.

    Without a mask function of this name transformers builds no mask: who sees what follows from the packed batch.
    """
    AttentionInterface.register(NAME, paged_attention)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    paged: PagedBatch,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **ignored: object,  # transformers passes along whatever some implementation reads: positions, dropout 0, ...
) -> tuple[Tensor, None]:
    """`[1, H, T, D]` queries against the cache, `[1, T, H, D]` out. `s_aux` are attention sinks, one per head."""
    assert isinstance(module.layer_idx, int)
    how = _Rule(scaling, sliding_window, softcap, s_aux)
    new = query[0], key[0], value[0]
    if paged.kernels is not None and paged.table is not None and how.plain and paged.kernels.can_attend(*new):
        slots = paged.cache.slots(module.layer_idx)
        return paged.kernels.attend(*new, slots, paged.table, scaling, sliding_window)[None], None
    q_THD = query[0].transpose(0, 1)
    paged.cache.write(module.layer_idx, paged.slots_T, key[0].transpose(0, 1), value[0].transpose(0, 1))
    if paged.flash is not None:
        if how.plain and paged.flash.takes(q_THD, paged.cache.block_size):
            blocks = paged.cache.blocks(module.layer_idx)
            return paged.flash(q_THD, blocks, paged.rows, scaling, sliding_window)[None], None
        if paged.recorded:
            raise NotRecordable("a layer caps its scores, has sinks, or heads that FlashAttention does not know")
    out = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    if paged.num_decoding:
        out[: paged.num_decoding] = _decode(q_THD[: paged.num_decoding], paged, module.layer_idx, how)
    for index, span in enumerate(paged.spans[paged.num_decoding :], start=paged.num_decoding):
        out[span.start : span.stop] = _prefill(q_THD[span.start : span.stop], paged, index, span, module.layer_idx, how)
    return out[None], None


@dataclass(frozen=True, slots=True)
class _Rule:
    """How scores become weights in one layer. `sinks` is one more score per query head, or None."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    @property
    def plain(self) -> bool:
        """Whether this is softmax over scaled scores and nothing else."""
        return self.softcap is None and self.sinks is None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sink_shape: tuple[int, ...]) -> Tensor:
        """`q [B, X, Q, D]`, `k`, `v` `[B, X, L, D]`; no `mask` means causal from the first position.

        `sink_shape` is how H sinks broadcast against `[B, X, Q, 1]`.
        """
        if self.plain:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scaling)
        scores = torch.matmul(q, k.transpose(-1, -2)).float() * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~mask, float("-inf"))
        if self.sinks is not None:
            sinks = self.sinks.float().view(sink_shape).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sinks], -1)
        return torch.matmul(scores.softmax(-1)[..., : k.shape[-2]].to(v.dtype), v)


def _decode(q_NHD: Tensor, paged: PagedBatch, layer: int, how: _Rule) -> Tensor:
    """One query per sequence: the G query heads of a KV head become the query length of one batched product."""
    count, heads, width = q_NHD.shape
    keys, values = paged.cache.slots(layer)
    slots = paged.slots_NL[:count, : paged.longest_decoding]
    k_NKLD, v_NKLD = keys[slots].transpose(1, 2), values[slots].transpose(1, 2)
    q_NKGD = q_NHD.view(count, keys.shape[1], heads // keys.shape[1], width)
    mask = paged.decode_mask(how.window)[:, None, None, :]
    sink_shape = (1, *q_NKGD.shape[1:3], 1)
    return how.attend(q_NKGD, k_NKLD, v_NKLD, mask, sink_shape).reshape(count, heads, width)


def _prefill(q_QHD: Tensor, paged: PagedBatch, index: int, span: Span, layer: int, how: _Rule) -> Tensor:
    """Many queries of one sequence: KV heads are the batch, their query heads share one expanded view of the keys."""
    count, heads, width = q_QHD.shape
    keys, values = paged.cache.slots(layer)
    slots = paged.slots_NL[index, : span.context]
    groups = heads // keys.shape[1]
    k_KGLD = keys[slots].transpose(0, 1)[:, None].expand(-1, groups, -1, -1)
    v_KGLD = values[slots].transpose(0, 1)[:, None].expand(-1, groups, -1, -1)
    q_KGQD = q_QHD.transpose(0, 1).view(keys.shape[1], groups, count, width)
    from_the_start = span.context == count and (how.window is None or count <= how.window)
    mask = None if from_the_start else _span_mask(span, how.window, q_QHD.device)
    out_KGQD = how.attend(q_KGQD, k_KGLD, v_KGLD, mask, (*q_KGQD.shape[:2], 1, 1))
    return out_KGQD.reshape(heads, count, width).transpose(0, 1)


def _span_mask(span: Span, window: int | None, device: torch.device) -> Tensor:
    """`[Q, L]`: the query at position p sees p and what lies before it, at most `window` positions."""
    queries = torch.arange(span.context - span.count, span.context, device=device)[:, None]
    positions = torch.arange(span.context, device=device)
    mask = positions <= queries
    return mask if window is None else mask & (positions > queries - window)
