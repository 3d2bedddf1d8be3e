"""From an answer's text, as it comes, to its text and its calls.

Owns the reading of one answer. The grammar has held it to the markup, so that nothing else is met here than text,
calls, and an answer that is cut off somewhere. Knows neither tokens nor HTTP.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from server.tools.elements import Elements, overlap
from server.tools.json_value import JsonValue
from server.tools.markup import SPACE, Markup
from server.tools.parameters import Parameter


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What is new of the call at `index`; its name comes first, and once."""

    index: int
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in an answer; its text comes before its calls."""

    text: str = ""
    calls: tuple[CallPiece, ...] = ()


class _Where(Enum):
    START = "nothing but space has come, and a call may only begin here"
    TEXT = "in text, which a call may follow"
    PLAIN = "in text that no call can follow"
    MARKUP = "around a call's arguments"
    ARGUMENTS = "in a call's arguments"


_NONE: Mapping[str, Sequence[Parameter]] = MappingProxyType({})


class _Arguments(Protocol):
    """One call's arguments as they come; `whole` at their end."""

    @property
    def whole(self) -> bool: ...

    def read(self, text: str) -> tuple[str, int]:
        """What is new of them as JSON, and how many characters of `text` it was read from; the others come again."""
        ...


class CallParser:
    """Reads one answer. `anywhere`: whether calls may come after text; otherwise the first characters decide. Arguments
    that come as elements are read by `elements`, the functions' parameters by their names.

    Arguments are given as they come, character by character. Space between text and a call is given to neither.
    """

    def __init__(self, markup: Markup, anywhere: bool, elements: Mapping[str, Sequence[Parameter]] = _NONE) -> None:
        self._markup, self._begin = markup, markup.begin
        self._elements = elements
        self._head = head(markup)
        self._where = _Where.TEXT if anywhere and markup.begin else _Where.START
        self._held = ""
        self._arguments: _Arguments = JsonValue()
        self.num_calls = 0

    @property
    def within(self) -> bool:
        """Whether the last call's arguments have not come to their end."""
        return self._where is _Where.ARGUMENTS

    def push(self, text: str) -> Piece:
        self._held += text
        said = "" if self._calling else self._text()
        calls = []
        while self._calling and (piece := self._next()) is not None:
            calls.append(piece)
        return Piece(said, _joined(calls))

    def finish(self) -> Piece:
        """What was held back and turns out to be text. A name that is cut off is no call."""
        held, self._held = self._held, ""
        return Piece() if self._calling else Piece(held)

    @property
    def _calling(self) -> bool:
        return self._where in (_Where.MARKUP, _Where.ARGUMENTS)

    def _text(self) -> str:
        if self._where is _Where.START:
            self._decide()
        if self._where is _Where.TEXT:
            return self._until_call()
        return self._take(len(self._held)) if self._where is _Where.PLAIN else ""

    def _decide(self) -> None:
        begun, sign = self._held.lstrip(SPACE), self._begin or "{"
        if begun.startswith(sign):
            self._where, self._held = _Where.MARKUP, begun[len(self._begin) :]
        elif not sign.startswith(begun):
            self._where = _Where.PLAIN

    def _until_call(self) -> str:
        place = self._held.find(self._begin)
        if place >= 0:
            said = self._take(place).rstrip(SPACE)
            self._where, self._held = _Where.MARKUP, self._held[len(self._begin) :]
            return said
        said = self._held[: len(self._held) - overlap(self._held, self._begin)]
        return self._take(len(said.rstrip(SPACE)))

    def _next(self) -> CallPiece | None:
        """The next piece of a call that what is held has."""
        if not self._held:
            return None
        if self.within:
            told, length = self._arguments.read(self._held)
            self._where = _Where.MARKUP if self._arguments.whole else _Where.ARGUMENTS
            self._take(length)
            return CallPiece(self.num_calls - 1, None, told) if told or length else None
        found = self._head.search(self._held)
        if found is None:
            return None
        self._where, self._arguments = _Where.ARGUMENTS, self._arguments_of(found[1])
        self._held = self._held[found.end() :]
        self.num_calls += 1
        return CallPiece(self.num_calls - 1, found[1], "")

    def _arguments_of(self, name: str) -> _Arguments:
        return Elements(self._elements[name]) if self._markup.elements else JsonValue()

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def head(markup: Markup) -> re.Pattern[str]:
    """A call up to its arguments. Its one group is the function's name."""
    space = f"[{SPACE}]*"
    if markup.elements:
        return re.compile("<function=([a-zA-Z0-9_-]+)>")
    if markup.between:
        return re.compile(rf"([a-zA-Z0-9_-]+){re.escape(markup.between)}(?=\{{)")
    parts = (r"\{", '"name"', ":", '"([a-zA-Z0-9_-]+)"', ",", f'"{markup.arguments}"', r":", r"(?=\{)")
    return re.compile(space.join(parts))


def _joined(pieces: list[CallPiece]) -> tuple[CallPiece, ...]:
    """One piece a call."""
    found: dict[int, CallPiece] = {}
    for piece in pieces:
        before = found.get(piece.index)
        if before is not None:
            piece = CallPiece(piece.index, before.name, before.arguments + piece.arguments)
        if piece.name is not None or piece.arguments:
            found[piece.index] = piece
    return tuple(found.values())
