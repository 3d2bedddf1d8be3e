"""A base over bytes: its vocabulary is so small that a thousand rows of logits are nothing.

Owns its tokenizer; its random weights are `make_base`'s smallest.
"""

from pathlib import Path

import numpy as np
import orjson
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from bench import make_base

BYTES = 256
END = "<|endoftext|>"
VOCAB = 272  # the bytes, the end, and padding to a multiple of 16


def write(directory: Path) -> Path:
    """Write the base to `directory`, the same one every time; returns `directory`."""
    return make_base.write(make_base.SHAPES[make_base.ShapeName.TINY], _like(directory / "tokenizer"), directory)


def _like(directory: Path) -> Path:
    """What `make_base` takes from another base: tokenizer, special tokens, and the vocabulary's size."""
    directory.mkdir(parents=True, exist_ok=True)
    _tokenizer().save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (directory / "tokenizer_config.json").write_bytes(orjson.dumps(settings))
    (directory / "config.json").write_bytes(orjson.dumps({"bos_token_id": BYTES, "eos_token_id": BYTES}))
    save_file({"model.embed_tokens.weight": np.zeros((VOCAB, 1), np.float16)}, directory / "model.safetensors")
    return directory


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer
