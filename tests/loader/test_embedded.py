"""The embedded base: a real model out of a GGUF, with the tokenizer it was trained with."""

import pytest
import torch

from loader.base import Base, load
from tests.support.embedded import embedded_source


@pytest.fixture(scope="module")
def base() -> Base:
    return load(embedded_source(), device="cpu")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a  1", ["a", "ĠĠ", "1"]),
        ("12 345", ["1", "2", "Ġ", "3", "4", "5"]),
        ("<|im_start|>user\nhi<|im_end|>", ["<|im_start|>", "user", "Ċ", "hi", "<|im_end|>"]),
    ],
)
def test_text_is_split_as_in_training(base: Base, text: str, tokens: list[str]) -> None:
    assert base.tokenizer.tokenize(text) == tokens


@pytest.mark.parametrize("text", ["a  1", " leading", "naïve 😀 x\n\n y  z\t", "it 's , spaced . text", "日本語"])
def test_text_survives_the_round_trip(base: Base, text: str) -> None:
    assert base.tokenizer.decode(base.tokenizer(text).input_ids) == text


def test_special_tokens_and_chat_template(base: Base) -> None:
    assert base.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (base.tokenizer.eos_token_id, base.tokenizer.pad_token_id) == (2, 2)
    assert base.eos_token_ids == {2}
    rendered = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_it_is_the_model_it_says(base: Base) -> None:
    assert base.id == "smollm2-135m-instruct"
    assert (base.shape.num_layers, len(base.shape.linears), base.max_model_len) == (30, 211, 8192)
    assert base.resident_bytes() == pytest.approx(269e6, rel=0.01)
    ids = torch.tensor([base.tokenizer("The capital of France is").input_ids])
    with torch.inference_mode():
        best = int(base.model(ids).logits[0, -1].argmax())
    assert base.tokenizer.decode([best]) == " Paris"
