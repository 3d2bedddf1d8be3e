"""The base's tokenizer as the server uses it: prompts, chats and single tokens' bytes.

Owns refusals in words for clients and the bytes of tokens; loader/chat.py lays chats out, for training too. Wraps
transformers' fast tokenizer without importing transformers; knows nothing of HTTP.
"""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from jinja2.exceptions import TemplateError

from loader.chat import ChatLayout, continuation, encoded
from loader.chat import FastTokenizer as ChatTokenizer
from server.errors import ChatRefused
from server.ports import Message

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class FastTokenizer(ChatTokenizer, Protocol):
    """The part of transformers' PreTrainedTokenizerFast that is used here."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> Any: ...


class HubTokenizer:
    """Prompts and chats for one base, through its own `tokenizer.json` and chat template."""

    def __init__(self, tokenizer: FastTokenizer, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        self._layout = ChatLayout(tokenizer)
        self._byte_level = "ByteLevel" in str(self._backend.decoder)

    def encode(self, text: str) -> list[int]:
        return encoded(self._backend, text, special=True)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Lay out `messages` and the assistant's turn to come. A message that spells one of the base's added tokens
        keeps its text, but the token does not arise.
        """
        turns = [{"role": turn.role, "content": self._layout.guard(turn.content)} for turn in messages]
        return self._layout.encode(self._render(turns))

    def encode_answer(self, text: str) -> list[int]:
        pieces = self._layout.pieces(self._layout.guard_answer(text))
        return [id for piece in pieces for id in continuation(self._plain, piece)]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def token_bytes(self, id: int) -> bytes:
        if id in self._added:
            return str(self._added[id]).encode()
        token = self._backend.id_to_token(id)
        if token is None:
            return b""
        if self._byte_level:
            return bytes(_BYTE_OF.get(letter, 0x3F) for letter in token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return str(token).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def _plain(self, text: str) -> list[int]:
        return encoded(self._backend, text, special=False)

    def _render(self, turns: list[dict[str, str]]) -> str:
        if not self._layout.exists:
            raise ChatRefused(
                "This base has no chat template, so it has no chat. Send a prompt to /v1/completions instead."
            )
        try:
            return self._layout.render(turns, generation=True)
        except TemplateError:
            raise ChatRefused(
                "The base's chat template refuses this order of roles. Most take an optional system message, "
                "then user and assistant in turn."
            ) from None


def _byte_alphabet() -> dict[str, int]:
    """The letters in which byte-level BPE (GPT-2's) writes the 256 bytes, each to its byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
