"""Packed rows behind a shared prefix give what each chat alone gives, and the cut decoder comes back whole."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.packing import Example, answer_loss, only, run_packed, upper_layers

HIDDEN = 16
FIRST_LAYER = 2


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


def chats() -> tuple[list[int], list[list[int]]]:
    return [3, 4, 5], [[6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]


@torch.no_grad()
def test_packed_rows_equal_each_chat_alone() -> None:
    decoder = tiny().model
    prefix, rows = chats()
    packed = run_packed(
        decoder, decoder.embed_tokens(torch.tensor(prefix)), [decoder.embed_tokens(torch.tensor(row)) for row in rows]
    )
    for row, output in zip(rows, packed[1:], strict=True):
        alone = decoder(input_ids=torch.tensor([prefix + row])).last_hidden_state[0, len(prefix) :]
        torch.testing.assert_close(output, alone)


@torch.no_grad()
def test_loss_from_cached_states_equals_the_loss_of_the_whole_model() -> None:
    model = tiny()
    prefix, rows = chats()
    embed = model.model.embed_tokens
    with only(model.model, slice(0, FIRST_LAYER), torch.nn.Identity()):
        states = run_packed(model.model, embed(torch.tensor(prefix)), [embed(torch.tensor(row)) for row in rows])
    answers = [row[-2:] for row in rows[:1] + rows[2:]]
    examples = [Example(state, answer) for state, answer in zip((states[1], states[3]), answers, strict=True)]
    with upper_layers(model.model, FIRST_LAYER):
        loss = answer_loss(model, states[0], examples)
    losses = []
    for row in (rows[0], rows[2]):
        ids = torch.tensor([prefix + row])
        labels = torch.full_like(ids, -100)
        labels[0, -2:] = ids[0, -2:]
        losses.append(model(input_ids=ids, labels=labels).loss)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert len(model.model.layers) == 4
