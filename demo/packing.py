"""Training a short chat cheaply: frozen lower layers run once, the shared system prompt runs once a batch.

Owns packed rows behind one prefix and the states that enter the first adapted layer. Knows nothing of adapters.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedTokenizerBase

from demo.score import Pair, encode, encode_answer


@dataclass(frozen=True, slots=True)
class Example:
    """One training pair: `states [tokens, hidden]` enter the first adapted layer, `answer` are the last token ids."""

    states: torch.Tensor
    answer: list[int]


@contextmanager
def only(decoder: Any, part: slice, norm: torch.nn.Module) -> Iterator[None]:
    """A LlamaModel with only a part of its `layers` and another last `norm`, for as long as the context lasts."""
    layers, last = decoder.layers, decoder.norm
    decoder.layers, decoder.norm = layers[part], norm
    try:
        yield
    finally:
        decoder.layers, decoder.norm = layers, last


def run_packed(decoder: LlamaModel, prefix: torch.Tensor, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The decoder's output for each row, all of them in one sequence behind one copy of the prefix they share.

    `prefix [P, hidden]` and `rows [T_i, hidden]` are input states. Each row sees the prefix and itself, causally, at
    the positions it would have alone: a third of a short chat is the system prompt, which is so computed once.
    """
    lengths = [len(prefix), *map(len, rows)]
    segment = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    position = torch.cat([torch.arange(n) + (len(prefix) if i else 0) for i, n in enumerate(lengths)])
    order = torch.arange(len(segment))
    mask = ((segment[:, None] == segment) | (segment == 0)) & (order[:, None] >= order)
    states = torch.cat([prefix, *rows])[None]
    out = decoder(inputs_embeds=states, position_ids=position[None], attention_mask=mask[None, None], use_cache=False)
    return list(out.last_hidden_state[0].split(lengths))


@torch.no_grad()
def cache_states(
    decoder: LlamaModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], first_layer: int
) -> tuple[torch.Tensor, list[Example]]:
    """What enters the first adapted layer: of the tokens with which every chat begins, and of each example after it."""
    chats = [(encode(tokenizer, prompt), encode_answer(tokenizer, answer)) for prompt, answer in pairs]
    shared = len(os.path.commonprefix([prompt for prompt, _ in chats]))
    embed = decoder.embed_tokens
    prefix, examples = embed(torch.tensor(chats[0][0][:shared])), []
    with only(decoder, slice(0, first_layer), torch.nn.Identity()):
        for start in range(0, len(chats), 8):
            part = chats[start : start + 8]
            states = run_packed(decoder, prefix, [embed(torch.tensor((p + a)[shared:])) for p, a in part])
            examples += [Example(row, answer) for row, (_, answer) in zip(states[1:], part, strict=True)]
    return states[0], examples


def upper_layers(decoder: LlamaModel, first_layer: int) -> AbstractContextManager[None]:
    """The decoder that takes the states that `cache_states` returns."""
    return only(decoder, slice(first_layer, None), decoder.norm)


def answer_loss(model: LlamaForCausalLM, prefix: torch.Tensor, batch: Sequence[Example]) -> torch.Tensor:
    """Mean loss in nats per answer token; to be run under `upper_layers`.

    The head, a fifth of all weights, runs on the positions that predict the answers alone.
    """
    outputs = run_packed(model.model, prefix, [example.states for example in batch])[1:]
    predicting = [out[-len(example.answer) - 1 : -1] for out, example in zip(outputs, batch, strict=True)]
    targets = torch.tensor([token for example in batch for token in example.answer])
    return cross_entropy(model.lm_head(torch.cat(predicting)), targets)
