"""A model without what transformers does around its layers in every step, where that comes to nothing.

Owns that shortcut: embedding, decoder layers in one call, norm, head. Knows no architecture: whether a model is no more
than that is found out by trying both on the same tokens.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.batch import PagedBatch
from engine.compiled_attention import PROBED_ROWS, one_sequence, probed_positions
from engine.compiled_layer import CompiledLayers
from engine.kv_cache import KVCache
from native.kernels import Kernels


class Logits(Protocol):
    """Logits `[X, V]` of the `wanted` rows of a step's tokens."""

    def __call__(
        self, ids: Sequence[int], positions: Sequence[int], wanted: Sequence[int], paged: PagedBatch
    ) -> Tensor: ...


class ModelLogits:
    """As transformers' model computes them."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(
        self, ids: Sequence[int], positions: Sequence[int], wanted: Sequence[int], paged: PagedBatch
    ) -> Tensor:
        device = paged.slots_T.device
        output = self._model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, dtype=torch.long, device=device),
            paged=paged,
        )
        return cast(Tensor, output.logits[0])


class ShortLogits:
    """`head(norm(layers(embed(ids))[wanted]))` with the very modules of the model.

    What transformers does around them takes a millisecond, which is a tenth of a decode step of the smallest models.
    """

    def __init__(self, model: PreTrainedModel, layers: CompiledLayers) -> None:
        decoder = model.base_model
        self._embed = model.get_input_embeddings()
        self._rotary, self._norm = cast(nn.Module, decoder.rotary_emb), cast(nn.Module, decoder.norm)
        self._layers, self._head = layers, cast(nn.Module, model.get_output_embeddings())

    def __call__(
        self, ids: Sequence[int], positions: Sequence[int], wanted: Sequence[int], paged: PagedBatch
    ) -> Tensor:
        embedded = self._embed(torch.tensor([ids]))
        turned = self._rotary(embedded, position_ids=torch.tensor([positions]))
        hidden = self._layers(embedded, position_embeddings=turned, attention_mask=None, paged=paged)[0]
        if len(wanted) < len(ids):
            hidden = hidden[torch.tensor(wanted, dtype=torch.long)]
        return cast(Tensor, self._head(self._norm(hidden)))


@torch.inference_mode()
def logits_of(
    model: PreTrainedModel, layers: Sequence[CompiledLayers], cache: KVCache, kernels: Kernels | None
) -> Logits:
    """The shortest way to a model's logits that gives the same to the bit. `layers`: what stands for its own, if any.

    `cache` is still empty: the trial writes to its first slots.
    """
    whole, decoder = ModelLogits(model), cast(Any, model.base_model)
    if kernels is None or len(layers) != 1 or not hasattr(decoder, "norm") or list(decoder.layers) != list(layers):
        return whole
    short = ShortLogits(model, layers[0])
    paged = one_sequence(cache, kernels)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (PROBED_ROWS,), generator=torch.Generator().manual_seed(0)).tolist()
    positions = probed_positions(model).tolist()

    def agree(wanted: Sequence[int]) -> bool:
        want, got = (way(ids, positions, wanted, paged) for way in (whole, short))
        return want.dtype == got.dtype and torch.equal(want, got)

    return short if agree([1, 3]) and agree(range(PROBED_ROWS)) else whole
