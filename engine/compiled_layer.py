"""A model's decoder layers, all in one call of the compiled kernels, where its own compute nothing else.

Owns that replacement, and when a step has to take the layers' own modules instead. Knows no architecture: whether a
layer may be replaced is found out by trying both on the same rows.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters.layer import ActiveGrafts, GraftedLinear, Selection
from engine.batch import PagedBatch
from engine.compiled_attention import CompiledAttention, probe
from engine.kv_cache import KVCache
from loader.pointwise import CompiledMLP, CompiledNorm
from loader.product import FastLinear
from native.kernels import Kernels
from native.tables import Heads, LayerTable, StackTable, layer_table, linear_table, stack_table, term_table

PARTS: Mapping[str, type[nn.Module]] = {
    "self_attn": CompiledAttention,
    "mlp": CompiledMLP,
    "input_layernorm": CompiledNorm,
    "post_attention_layernorm": CompiledNorm,
}
LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {
    "before_attention": "input_layernorm",
    "before_mlp": "post_attention_layernorm",
    "of_queries": "self_attn.q_norm",
    "of_keys": "self_attn.k_norm",
}


class CompiledLayers(nn.Module):
    """Decoder layers, one after the other: `a = x + attention(norm(x))`, `a + mlp(norm(a))`, with their very modules.

    A step in which a merged adapter's rows are mixed with others goes through those modules one by one.
    """

    def __init__(
        self,
        originals: Iterable[nn.Module],
        active: ActiveGrafts,
        numbers: Mapping[str, int],
        cache: KVCache,
        kernels: Kernels,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(originals)
        self._numbers = numbers
        self._active, self._cache, self._kernels = active, cache, kernels
        self._base = self._table(lambda linear: linear.base)
        self._merged: StackTable | None = None

    def forget_merged(self) -> None:
        """Other weights are merged now, or none: those that were have to go."""
        self._merged = None

    def forward(self, hidden_states: Tensor, **inputs: object) -> Tensor:
        selection, paged = self._active.tokens, cast(PagedBatch, inputs["paged"])
        table = self._table_for(selection)
        if table is None or paged.table is None or not hidden_states.is_contiguous():
            for layer in self.layers:
                hidden_states = layer(hidden_states, **inputs)
            return hidden_states
        cos, sin = cast(tuple[Tensor, Tensor], inputs["position_embeddings"])
        assert selection is None or selection.terms.num_rows == hidden_states.shape[1], "not this step's selection"
        terms = NO_TERMS if selection is None or selection.table is None else selection.table
        return self._kernels.decoder_layers(hidden_states, table, paged.table, terms, cos, sin)

    def _table_for(self, selection: Selection | None) -> StackTable | None:
        """The weights that all of the step's rows take, or None where they take different ones."""
        if selection is None or not selection.pieces:
            return self._base
        if not selection.all_merged:
            return None
        if self._merged is None:
            self._merged = self._table(lambda linear: linear.merged or linear.base)
        return self._merged

    def _table(self, weight: Callable[[GraftedLinear], nn.Module]) -> StackTable:
        return stack_table([self._layer_table(layer, weight) for layer in self.layers])

    def _layer_table(self, layer: nn.Module, weight: Callable[[GraftedLinear], nn.Module]) -> LayerTable:
        linears = {}
        for name, path in LINEARS.items():
            grafted = cast(GraftedLinear, layer.get_submodule(path))
            module = cast(FastLinear, weight(grafted))
            linears[name] = linear_table(module.stored, module.bias, self._numbers[grafted.path])
        attention, modules = cast(CompiledAttention, layer.self_attn), dict(layer.named_modules())
        norms = {name: cast(CompiledNorm, modules[path]) for name, path in NORMS.items() if path in modules}
        return layer_table(
            linears,
            {name: (norm.weight, norm.epsilon) for name, norm in norms.items()},
            self._cache.slots(attention.layer_idx),
            heads_of(attention),
        )


NO_TERMS = term_table((), 0)


def heads_of(attention: CompiledAttention) -> Heads:
    projections = (cast(GraftedLinear, one) for one in (attention.q_proj, attention.k_proj))
    heads, kv_heads = (cast(int, one.base.out_features) // attention.head_dim for one in projections)
    return Heads(heads, kv_heads, attention.head_dim, attention.scaling)


@torch.inference_mode()
def speed_up_layers(
    model: PreTrainedModel, active: ActiveGrafts, numbers: Mapping[str, int], cache: KVCache, kernels: Kernels | None
) -> list[CompiledLayers]:
    """Replace the decoder layers of `model` that compute what CompiledLayers does: all by one, or else each by its own.

    Returns what stands there instead. Its linears are grafted already; `numbers` are their places in adapters' tables.
    `cache` is still empty: the trial writes to its first slots.
    """
    rotary = getattr(model.base_model, "rotary_emb", None)
    layers = getattr(model.base_model, "layers", None)
    if kernels is None or rotary is None or not isinstance(layers, nn.ModuleList):
        return []
    alone = {
        index: CompiledLayers([layer], active, numbers, cache, kernels)
        for index, layer in enumerate(layers)
        if _has_known_parts(layer)
    }
    replaced = {index: one for index, one in alone.items() if _agree(layers[index], one, model, cache, kernels)}
    if len(replaced) == len(layers):
        replaced = {0: CompiledLayers(layers, active, numbers, cache, kernels)}
        model.base_model.layers = nn.ModuleList(replaced.values())
    else:
        for index, one in replaced.items():
            layers[index] = one
    return list(replaced.values())


def _has_known_parts(layer: nn.Module) -> bool:
    """Whether a layer is made of the parts that the kernel knows, and nothing else."""
    parts = {name: type(part) for name, part in layer.named_children()}
    if parts != PARTS:
        return False
    norms = [module for path, module in layer.named_modules() if path in NORMS.values()]
    if not all(isinstance(norm, CompiledNorm) for norm in norms):
        return False
    linears = [layer.get_submodule(path) for path in LINEARS.values()]
    return all(isinstance(one, GraftedLinear) and isinstance(one.base, FastLinear) for one in linears)


def _agree(
    original: nn.Module, replacement: CompiledLayers, model: PreTrainedModel, cache: KVCache, kernels: Kernels
) -> bool:
    """Whether both give the same for the same rows, but for the last places of what they round in between."""
    query = cast(GraftedLinear, original.get_submodule(LINEARS["q"]))
    x, inputs = probe(cast(FastLinear, query.base).in_features, model, cache, kernels)
    want, got = (cast(Tensor, layer(x, **inputs)).float() for layer in (original, replacement))
    return bool((want - got).abs().max() <= 2**-6 * (want.abs().max() + 1e-6))
