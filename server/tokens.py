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
from server.tools.markup import DESCRIBED, MARKUPS, Call, Function, Markup, markup_of, mentions_tools, short_id

_NO_CHAT = "This base has no chat template, so it has no chat. Send a prompt to /v1/completions instead."
_ROLES = (
    "The base's chat template refuses this order of roles. Most take an optional system message, then user and "
    "assistant in turn."
)
_FUNCTIONS = (
    "The base's chat template cannot lay out these functions or calls. Most take `parameters` whose `properties` are "
    "schemas, each with a `type`, and results right behind the calls."
)
_FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What templates raise: what they mean to, and over schemas that are other than they think."""

_PROBE, _OTHER = (Function(f"a_function_that_is_{what}", "", None, "") for what in ("tried", "there_too"))
_ASKED = (Message("user", "x"),)
_CALLED = (*_ASKED, Message("assistant", "", (Call("000000000", _PROBE.name, {}),)), Message("tool", "x", (), "0" * 9))

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
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()  # some tokenizer.json files do both by themselves, and nobody would be told
        self._backend.no_truncation()
        self._added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        self._special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._layout = ChatLayout(tokenizer)
        self._byte_level = "ByteLevel" in str(self._backend.decoder)
        self.markup: Markup | None = None if parser == "auto" else MARKUPS[parser]
        self._plain_template, self._template = _texts(tokenizer.chat_template)
        self._lays_out_functions = self._lays_out(_ASKED, (_PROBE,), self._template)
        self._lays_out_calls = self._lays_out(_CALLED, (), self._plain_template)
        self._lays_out_calls_beside = self._lays_out(_CALLED, (_OTHER,), self._template)
        if parser == "auto":
            self.markup = markup_of(self._template) if self._lays_out_functions else DESCRIBED

    def encode(self, text: str) -> list[int]:
        return encoded(self._backend, text, special=True)

    def special_id(self, text: str) -> int | None:
        return self._special.get(text)

    def encode_chat(self, messages: Sequence[Message], functions: Sequence[Function] = ()) -> list[int]:
        """Lay out `messages` and the assistant's turn to come. A message that spells one of the base's added tokens
        keeps its text, but the token does not arise.
        """
        if not self._layout.exists:
            raise ChatRefused(_NO_CHAT)
        try:
            text = self._laid_out(messages, functions)
        except _FAULTS as error:
            calling = functions or any(message.calls for message in messages)
            raise ChatRefused(self._words(error) or (_FUNCTIONS if calling else _ROLES)) from None
        return self._layout.encode(text)

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
        """Raises what templates raise."""
        markup = self.markup or DESCRIBED
        if functions and self._lays_out_functions:
            return self._render(messages, functions, None if self._lays_out_calls_beside else markup)
        if not functions and self._lays_out_calls:
            return self._render(messages)
        if not functions:
            return self._render(described(messages, (), markup))
        try:
            return self._render(described(messages, functions, markup))
        except TemplateError:
            if messages[0].role == "system":
                raise
            return self._render(described(messages, functions, markup, "user"))  # the template may take no system role

    def _lays_out(self, messages: Sequence[Message], functions: Sequence[Function], template: str) -> bool:
        """Whether the base's template tells of the function that these mention."""
        try:
            return self._layout.exists and _PROBE.name in self._render(messages, functions)
        except _FAULTS:  # over something that has nothing to do with it
            return mentions_tools(template)

    def _render(
        self, messages: Sequence[Message], functions: Sequence[Function] = (), calls_as: Markup | None = None
    ) -> str:
        tools = [self._layout.guard_all(function.described) for function in functions]
        turns = [self._turn(message, calls_as) for message in messages]
        return self._layout.render(turns, generation=True, tools=tools)

    def _turn(self, message: Message, calls_as: Markup | None) -> dict[str, Any]:
        """With `calls_as`, calls are text of this markup: the template would leave them out."""
        turn: dict[str, Any] = {"role": message.role, "content": self._layout.guard(message.content)}
        if message.calls:
            turn["tool_calls"] = calls = [self._called(call) for call in message.calls]
            if calls_as is not None:
                functions = [call["function"] for call in calls]
                written = calls_as.written([(each["name"], each["arguments"]) for each in functions])
                turn["content"] = "\n".join(filter(None, (turn["content"], written)))
        if message.answers:
            turn |= {"tool_call_id": self._id(message.answers), "name": message.name}
        return turn

    def _called(self, call: Call) -> dict[str, Any]:
        function = {"name": self._layout.guard(call.name), "arguments": self._layout.guard_all(call.arguments)}
        return {"id": self._id(call.id), "type": "function", "function": function}

    def _id(self, id: str) -> str:
        return short_id(id) if self.markup is not None and self.markup.short_ids else self._layout.guard(id)

    def _words(self, error: Exception) -> str:
        """The template's own words where it has some; others could repeat what was sent."""
        words = str(error).rstrip(".")
        own = isinstance(error, TemplateError) and words and words in self._plain_template + self._template
        return f"The base's chat template refuses these messages: {words}." if own else ""


def _texts(template: Any) -> tuple[str, str]:
    """A base's template, and the one for chats with functions, which may be another."""
    if not isinstance(template, Mapping):
        return str(template or ""), str(template or "")
    plain = str(template.get("default", ""))
    return plain, str(template.get("tool_use", plain))


def _byte_alphabet() -> dict[str, int]:
    """The letters in which byte-level BPE (GPT-2's) writes the 256 bytes, each to its byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
