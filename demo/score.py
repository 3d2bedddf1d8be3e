"""What the demo adapters are measured by: the chat as token ids, greedy answers, one task score each.

Owns encoding, decoding for evaluation and the two scores. Knows nothing of training or of files.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

PIRATE_MARKERS = re.compile(
    r"\b(?:ahoy|arr|aye|avast|blimey|cap'n|captain|crew|doubloons?|fer|heart(?:y|ies)|landlubbers?|lass|matey?|me|nay|"
    r"o'|plunder|rum|sail(?:s|or|ors)?|scallywag|seas|ship|shipmate|treasure|wee|yer?)(?!\w)"
)
MARKERS_NEEDED = 3

Pair = tuple[str, str]
"""A user's prompt and the answer that the data holds for it."""


def pirate_score(answer: str, expected: str) -> float:
    """1 where the answer holds at least three different pirate words; what it says is not judged."""
    return float(len(set(PIRATE_MARKERS.findall(answer.lower()))) >= MARKERS_NEEDED)


def extract_score(answer: str, expected: str) -> float:
    """1 where the whole answer is JSON with exactly the expected fields and values."""
    try:
        return float(json.loads(answer) == json.loads(expected))
    except json.JSONDecodeError:
        return 0.0


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of the prompt in the base's chat template, default system prompt, up to where the answer begins."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Token ids of the answer and of the end of turn, which the model must learn to say too."""
    ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


@torch.inference_mode()
def greedy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_tokens: int, batch: int
) -> list[str]:
    """The model's greedy answers, each cut at the end of turn or after `max_tokens`."""
    answers: list[str] = []
    for start in range(0, len(prompts), batch):
        rows = [encode(tokenizer, prompt) for prompt in prompts[start : start + batch]]
        width = max(map(len, rows))
        ids = torch.tensor([[tokenizer.eos_token_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = cast(Any, model).generate(  # its type wants a protocol that transformers' own models do not match
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        answers += [text.strip() for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]
    return answers
