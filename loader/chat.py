"""A base's chat layout, in which a message cannot speak for another role: text first, then tokens.

Owns the one way from messages to tokens, so that training and serving see the same. Wraps transformers' fast tokenizer
without importing transformers; knows nothing of HTTP or of losses.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

ANCHORS = ("\n", ".", "0", "a")
_LONG = 4096


class FastTokenizer(Protocol):
    """The part of transformers' PreTrainedTokenizerFast that is used here."""

    chat_template: Any

    @property
    def backend_tokenizer(self) -> Any: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def apply_chat_template(
        self, conversation: Any, tools: Any = None, *, tokenize: bool, add_generation_prompt: bool
    ) -> Any: ...


class ChatLayout:
    """Lays out chats through a tokenizer's own template.

    Wherever a message spells one of the base's added tokens, a seam stands behind its first character. Text is encoded
    piece by piece between the seams, so the text stays but the token does not arise.
    """

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._cuts = cut_pattern(token.content for token in added)
        self._special_cuts = cut_pattern(token.content for token in added if token.special)
        self.seam = secrets.token_hex(16)

    @property
    def exists(self) -> bool:
        """Whether this base has chats at all."""
        return bool(self._tokenizer.chat_template)

    def guard(self, content: str) -> str:
        """A message's text with seams in it."""
        return self._cuts.sub(lambda match: match[0] + self.seam, content)

    def guard_answer(self, content: str) -> str:
        """As `guard`, but a learned answer may spell added tokens that are not special, such as <think>."""
        return self._special_cuts.sub(lambda match: match[0] + self.seam, content)

    def guard_all(self, value: Any) -> Any:
        """A JSON value with seams in all its texts, keys included."""
        if isinstance(value, str):
            return self.guard(value)
        if isinstance(value, Mapping):
            return {self.guard(key): self.guard_all(within) for key, within in value.items()}
        return [self.guard_all(within) for within in value] if isinstance(value, list | tuple) else value

    def render(
        self, turns: Sequence[Mapping[str, Any]], *, generation: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The template's text for guarded turns and tools, with the assistant's turn to come if `generation`.

        Raises jinja2's TemplateError where the template refuses the turns.
        """
        text: str = self._tokenizer.apply_chat_template(
            list(turns), list(tools) or None, tokenize=False, add_generation_prompt=generation
        )
        return text

    def pieces(self, text: str) -> list[str]:
        """What is encoded apart, in order, each without special tokens of the tokenizer's own."""
        return text.split(self.seam)

    def encode(self, text: str) -> list[int]:
        core = self._tokenizer.backend_tokenizer
        return [id for piece in self.pieces(text) for id in encoded(core, piece, special=False)]


def encoded(core: Any, text: str, special: bool) -> list[int]:
    """A text's ids. `encode` lets no other thread run until it is through, seconds for megabytes; this call does."""
    if len(text) <= _LONG:
        short: list[int] = core.encode(text, add_special_tokens=special).ids
        return short
    ids: list[int] = core.encode_batch_fast([text], add_special_tokens=special)[0].ids
    return ids


def continuation(encode: Callable[[str], Sequence[int]], text: str) -> Sequence[int]:
    """Ids of a text that continues another, where `encode` may put a space before a beginning, as SentencePiece does.

    It is encoded behind the first anchor that no token reaches over.
    """
    for anchor in ANCHORS:
        lead, whole = encode(anchor), encode(anchor + text)
        if whole[: len(lead)] == lead:
            return whole[len(lead) :]
    return encode(text)


def cut_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches the first character of every place where one of `tokens` is spelled, overlapping ones included."""
    spelled = "|".join(re.escape(token) for token in sorted(set(tokens), key=len, reverse=True) if len(token) > 1)
    return re.compile(f"(?=(?:{spelled}))." if spelled else r"(?!)", re.DOTALL | re.IGNORECASE)
