"""One GGUF file to a Hugging Face directory in bf16, with the tokenizer that the model was trained with.

Owns the call into transformers' GGUF reader and the repair of what it loses. Knows nothing of where the result goes.
"""

from pathlib import Path
from typing import cast

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata

from loader.base import quiet
from loader.errors import UnsupportedBase

DIGITS_THEN_GPT2 = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
"""`tokenizer.ggml.pre` values whose byte-level BPE isolates every digit before it splits as GPT-2 does."""

GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo"})
"""`tokenizer.ggml.pre` values that split as GPT-2 does and nothing more."""


def write(file: Path, target: Path) -> None:
    """Write `file` as model.safetensors (bf16), config and tokenizer files into the empty directory `target`.

    Raises UnsupportedBase for an architecture or tokenizer that transformers cannot rebuild faithfully.
    """
    tokenizer = _tokenizer(file)
    try:
        with quiet():
            model = cast(
                PreTrainedModel,
                AutoModelForCausalLM.from_pretrained(
                    file.parent,
                    gguf_file=file.name,
                    quantization_config=GgufConfig(dequantize=True),
                    dtype=torch.bfloat16,
                    local_files_only=True,
                    trust_remote_code=False,
                ),
            )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UnsupportedBase(
            f"{file.name} cannot be dequantized: {error}. Use the model's safetensors directory instead."
        ) from error
    tokenizer.model_max_length = model.config.max_position_embeddings
    with quiet():
        model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _tokenizer(file: Path) -> PreTrainedTokenizerFast:
    try:
        tokenizer = cast(
            PreTrainedTokenizerFast,
            AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
            ),
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UnsupportedBase(
            f"The tokenizer in {file.name} cannot be rebuilt: {error}. Use the model's safetensors directory instead."
        ) from error
    metadata, _ = read_gguf_metadata(str(file))
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        _restore_pre_tokenizer(tokenizer, str(metadata.get("tokenizer.ggml.pre", "default")), file)
    return tokenizer


def _restore_pre_tokenizer(tokenizer: PreTrainedTokenizerFast, pre: str, file: Path) -> None:
    """Split text before the merges as the model's own tokenizer does; `pre` is llama.cpp's name for how.

    A GGUF holds that name and not the rule. transformers knows some names and takes GPT-2's rule for all
    others, which for SmolLM2 turns `a  1` into other tokens than it was trained on.
    """
    if pre in GGUF_PRE_TOKENIZER_SPLITS or pre in GPT2:
        return
    if pre not in DIGITS_THEN_GPT2:
        raise UnsupportedBase(
            f"{file.name} names the pre-tokenizer {pre!r}, whose rule is not known here; text would be split wrongly. "
            "Use the model's safetensors directory, which has its tokenizer.json."
        )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
