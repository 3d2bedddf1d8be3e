"""The library's view of a base's vocabulary: what each token spells.

Owns what it is told of added tokens. Knows nothing of grammars.
"""

import json
from collections.abc import Collection
from copy import copy
from typing import Any

from llguidance import LLTokenizer
from tokenizers import pre_tokenizers


def vocabulary(tokenizer: Any, vocab_size: int, eos: Collection[int]) -> LLTokenizer:
    """Of a `tokenizers.Tokenizer`, of which logits have `vocab_size` ids. Takes 0.3 s."""
    plain = copy(tokenizer)
    plain.no_padding()
    plain.no_truncation()
    ends = sorted(id for id in eos if id < vocab_size)
    return LLTokenizer(_with_text(plain.to_str(), ends), n_vocab=vocab_size, eos_token=ends or None)


def _with_text(state: str, ends: Collection[int]) -> str:
    """A tokenizer's JSON in which added tokens that are text, such as <think> and <tool_call>, are like any other.

    The library takes all that is spelled like those for special tokens, which no text has.
    """
    read: dict[str, Any] = json.loads(state)
    if read["model"]["type"] != "BPE":
        return state
    byte_level, vocab = "ByteLevel" in json.dumps(read["decoder"]), read["model"]["vocab"]
    special = [token for token in read["added_tokens"] if token["special"] or token["id"] in ends]
    text = [token for token in read["added_tokens"] if token not in special]
    vocab |= {_spelled(token["content"], byte_level): token["id"] for token in text}
    vocab |= {token["content"]: token["id"] for token in special}  # which keeps their ids
    return json.dumps(read | {"added_tokens": special})


def _spelled(text: str, byte_level: bool) -> str:
    """As vocabularies write it: bytes as letters, or a block for a space."""
    if not byte_level:
        return text.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in letters)
