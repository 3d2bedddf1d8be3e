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

    The library takes all that is spelled like those for special tokens, which no text has. Of the JSON only the added
    tokens are parsed: all of it is megabytes, and nothing else would run meanwhile.
    """
    start = state.index(_ADDED) + len(_ADDED)
    added, end = json.JSONDecoder().raw_decode(state, start)
    special = [token for token in added if token["special"] or token["id"] in ends]
    text = [token for token in added if not token["special"] and token["id"] not in ends]
    if not text or _BPE not in state:
        return state
    byte_level = '"type":"ByteLevel"' in state[state.index(_DECODER) :]
    spelled = {_spelled(token["content"], byte_level): token["id"] for token in text}
    spelled |= {token["content"]: token["id"] for token in special}  # which keeps their ids
    kept = state[:start] + json.dumps(special) + state[end:]
    return kept.replace(_VOCAB, _VOCAB + json.dumps(spelled)[1:-1] + ",", 1)


_ADDED, _DECODER, _BPE, _VOCAB = '"added_tokens":', '"decoder":', '"model":{"type":"BPE"', '"vocab":{'
"""No string within JSON has these: its quotes are escaped."""


def _spelled(text: str, byte_level: bool) -> str:
    """As vocabularies write it: bytes as letters, or a block for a space."""
    if not byte_level:
        return text.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in letters)
