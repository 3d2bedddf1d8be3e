"""The base's tokenizer as the server uses it: prompts, chats and single tokens' bytes.

Owns refusals in words for clients and the bytes of tokens; loader/chat.py lays chats out, for training too. Wraps
transformers' fast tokenizer without importing transformers; knows nothing of HTTP.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jinja2.exceptions import TemplateError

from loader.chat import ChatLayout, continuation, encoded
from loader.chat import FastTokenizer as ChatTokenizer
from server.errors import ChatRefused
from server.ports import Message
from server.tools.describe import described
from server.tools.markup import HERMES, MARKUPS, Call, Function, Markup, lays_out_tools, markup_of, short_id

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class FastTokenizer(ChatTokenizer, Protocol):
    """The part of transformers' PreTrainedTokenizerFast that is used here."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> Any: ...


class HubTokenizer:
    """Prompts and chats for one base, through its own `tokenizer.json` and chat template.

    `parser` names the markup of calls; with `auto` it is the template's.
    """

    def __init__(self, tokenizer: FastTokenizer, vocab_size: int, parser: str = "auto") -> None:
        self.vocab_size = vocab_size
        self._template = _text_of(tokenizer.chat_template)
        self.markup: Markup | None = markup_of(self._template) if parser == "auto" else MARKUPS[parser]
        self._knows_functions = lays_out_tools(self._template)
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        self._special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._layout = ChatLayout(tokenizer)
        self._byte_level = "ByteLevel" in str(self._backend.decoder)

    def encode(self, text: str) -> list[int]:
        return encoded(self._backend, text, special=True)

    def special_id(self, text: str) -> int | None:
        return self._special.get(text)

    def encode_chat(self, messages: Sequence[Message], functions: Sequence[Function] = ()) -> list[int]:
        """Lay out `messages` and the assistant's turn to come. A message that spells one of the base's added tokens
        keeps its text, but the token does not arise.
        """
        if not self._layout.exists:
            raise ChatRefused(
                "This base has no chat template, so it has no chat. Send a prompt to /v1/completions instead."
            )
        try:
            return self._layout.encode(self._laid_out(messages, functions))
        except TemplateError as error:
            raise self._refusal(error) from None

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

    def _laid_out(self, messages: Sequence[Message], functions: Sequence[Function]) -> str:
        """Raises TemplateError."""
        if self._knows_functions:
            return self._render(messages, functions)
        markup = self.markup or HERMES
        if not functions:
            return self._render(described(messages, (), markup))
        try:
            return self._render(described(messages, functions, markup))
        except TemplateError:
            if messages[0].role == "system":
                raise
            return self._render(described(messages, functions, markup, "user"))  # the template may take no system role

    def _render(self, messages: Sequence[Message], functions: Sequence[Function] = ()) -> str:
        tools = [self._layout.guard_all(function.described) for function in functions]
        return self._layout.render([self._turn(message) for message in messages], generation=True, tools=tools)

    def _turn(self, message: Message) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": message.role, "content": self._layout.guard(message.content)}
        if message.calls:
            turn["tool_calls"] = [self._called(call) for call in message.calls]
        if message.answers:
            turn |= {"tool_call_id": self._id(message.answers), "name": message.name}
        return turn

    def _called(self, call: Call) -> dict[str, Any]:
        function = {"name": self._layout.guard(call.name), "arguments": self._layout.guard_all(call.arguments)}
        return {"id": self._id(call.id), "type": "function", "function": function}

    def _id(self, id: str) -> str:
        return short_id(id) if self.markup is not None and self.markup.short_ids else self._layout.guard(id)

    def _refusal(self, error: TemplateError) -> ChatRefused:
        """In the template's own words where it has some; others could repeat what was sent."""
        words = str(error.message).rstrip(".")
        if words and words in self._template:
            return ChatRefused(f"The base's chat template refuses these messages: {words}.")
        return ChatRefused(
            "The base's chat template refuses this order of roles. Most take an optional system message, "
            "then user and assistant in turn."
        )


def _text_of(template: Any) -> str:
    """All of a base's templates, which may be several by name."""
    return "\n".join(map(str, template.values())) if isinstance(template, Mapping) else str(template or "")


def _byte_alphabet() -> dict[str, int]:
    """The letters in which byte-level BPE (GPT-2's) writes the 256 bytes, each to its byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
