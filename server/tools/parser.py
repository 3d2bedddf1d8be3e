"""From an answer's text, as it comes, to its text and its calls.

Owns the reading of one answer. The grammar has held it to the markup, so that nothing else is met here than text,
calls, and an answer that is cut off somewhere. Knows neither tokens nor HTTP.
"""

import re
from dataclasses import dataclass
from enum import Enum

from server.tools.markup import Markup

SPACE = " \n\r\t"


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


class CallParser:
    """Reads one answer. `anywhere`: whether calls may come after text; otherwise the first characters decide.

    Arguments are given as they are written, character by character. Space between text and a call is given to neither.
    """

    def __init__(self, markup: Markup, anywhere: bool) -> None:
        self._begin = markup.begin
        self._head = head(markup)
        self._where = _Where.TEXT if anywhere and markup.begin else _Where.START
        self._held = ""
        self._value = _Value()
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
        could_begin = next(n for n in range(len(self._begin) - 1, -1, -1) if self._held.endswith(self._begin[:n]))
        return self._take(len(self._held[: len(self._held) - could_begin].rstrip(SPACE)))

    def _next(self) -> CallPiece | None:
        """The next piece of a call that what is held has."""
        if not self._held:
            return None
        if self.within:
            length = self._value.length(self._held)
            self._where = _Where.MARKUP if self._value.whole else _Where.ARGUMENTS
            return CallPiece(self.num_calls - 1, None, self._take(length))
        found = self._head.search(self._held)
        if found is None:
            return None
        self._where, self._value = _Where.ARGUMENTS, _Value()
        self._held = self._held[found.end() :]
        self.num_calls += 1
        return CallPiece(self.num_calls - 1, found[1], "")

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


class _Value:
    """Where one JSON object ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.whole = False

    def length(self, text: str) -> int:
        """How many characters of `text`, which goes on with it and is not empty, are its."""
        place, self._escaped = int(self._escaped), False
        while found := _MARKS.search(text, place):
            mark, place = found[0], found.end()
            if mark == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                self._escaped = mark == "\\" and place == len(text)
                place += mark == "\\"
            elif mark in "{[":
                self._depth += 1
            elif mark in "}]":
                self._depth -= 1
                self.whole = self._depth == 0
                if self.whole:
                    return place
        return len(text)


_MARKS = re.compile(r'[\\"{}\[\]]')


def head(markup: Markup) -> re.Pattern[str]:
    """A call up to its arguments. Its one group is the function's name."""
    space = f"[{SPACE}]*"
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
