"""Small data files and configs, and tokenizers of every kind of chat layout, for tests of what is learned."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from training.config import TrainConfig

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
BARE = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Thinks in the last turn, and drops it from earlier ones."""
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "phi3": PHI3, "gemma": GEMMA, "bare": BARE, "qwen3": QWEN3}
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
ENDS = {"chatml": "<|im_end|>", "llama2": "</s>", "phi3": "<|im_end|>", "gemma": "<|im_end|>", "bare": "</s>"}


@cache
def tokenizer(layout: str | None = "chatml", *, adds_bos: bool = False, dummy_prefix: bool = False) -> Any:
    """Byte-level, with merges that reach over careless borders. `dummy_prefix`: as SentencePiece has it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("a", "b"), ("]", "Ġ"), ("Ġ", "a")]
    vocabulary = {letter: place for place, letter in enumerate([*alphabet, *(a + b for a, b in merges)])}
    core = Tokenizer(BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = ByteLevel()
    if dummy_prefix:
        core.normalizer = normalizers.Prepend(" ")
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>" if layout == "chatml" else "</s>"
    )
    fast.chat_template = TEMPLATES[layout] if layout else None
    return fast


def chat(*contents: str, system: str | None = None) -> dict[str, Any]:
    """A chat whose turns alternate, the user's first."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


def write(path: Path, rows: Sequence[Any]) -> Path:
    """A JSONL file; strings are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def config(train: Path, *, heldout: Path | None = None, objective: str = "sft", **data: Any) -> TrainConfig:
    """A config for some data; nothing is held out unless `heldout` or `heldout_share` says so."""
    told = {"train": train, "heldout": heldout, "heldout_share": 0.0, **data}
    reward = {"reward": {"model": "judge"}} if objective in ("grpo", "rloo") else {}
    return TrainConfig.model_validate({"output": "out", "data": told, "objective": objective, **reward})
