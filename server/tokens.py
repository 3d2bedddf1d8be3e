"""The base's tokenizer as the face uses it: prompts, chats and single tokens' bytes.

Owns the chat layout in which a message cannot speak for another role. Wraps transformers' fast
tokenizer without importing transformers; knows nothing of HTTP.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jinja2.exceptions import TemplateError

from server.errors import ChatRefused
from server.ports import Message

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class FastTokenizer(Protocol):
    """The part of transformers' PreTrainedTokenizerFast that is used here."""

    chat_template: Any

    @property
    def backend_tokenizer(self) -> Any: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> Any: ...


class HubTokenizer:
    """Prompts and chats for one base, through its own `tokenizer.json` and chat template."""

    def __init__(self, tokenizer: FastTokenizer, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        self._cuts = cut_pattern(self._added.values())
        self._seam = secrets.token_hex(16)
        self._byte_level = "ByteLevel" in str(self._backend.decoder)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text).ids
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Lay out `messages` and the assistant's turn to come.

        Wherever a message spells one of the base's added tokens, its first character is encoded apart from the
        rest, so that the text stays but the token does not arise.
        """
        text = self._render([{"role": turn.role, "content": self._cut(turn.content)} for turn in messages])
        pieces = text.split(self._seam)
        return [id for piece in pieces for id in self._backend.encode(piece, add_special_tokens=False).ids]

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

    def _cut(self, content: str) -> str:
        return self._cuts.sub(lambda match: match[0] + self._seam, content)

    def _render(self, turns: list[dict[str, str]]) -> str:
        if not self._tokenizer.chat_template:
            raise ChatRefused(
                "This base has no chat template, so it has no chat. Send a prompt to /v1/completions instead."
            )
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError:
            raise ChatRefused(
                "The base's chat template refuses this order of roles. Most take an optional system message, "
                "then user and assistant in turn."
            ) from None
        return text


def cut_pattern(tokens: Any) -> re.Pattern[str]:
    """Matches the first character of every place where one of `tokens` is spelled, overlapping ones included."""
    spelled = "|".join(re.escape(token) for token in sorted(set(tokens), key=len, reverse=True) if len(token) > 1)
    return re.compile(f"(?=(?:{spelled}))." if spelled else r"(?!)", re.DOTALL | re.IGNORECASE)


def _byte_alphabet() -> dict[str, int]:
    """The letters in which byte-level BPE (GPT-2's) writes the 256 bytes, each to its byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
