"""From the elements in which some markups write a call's arguments, as they come, to the JSON that clients are told.

Owns this reading. The grammar has held the elements to the function's parameters. Knows neither bodies nor HTTP.
"""

import re
from collections.abc import Mapping, Sequence

from server.tools.json_value import JsonValue
from server.tools.markup import dumps
from server.tools.parameters import CLOSE, Parameter, Text

_NEXT = re.compile(r"<parameter=([^>]*)>\n|</function>")


class Elements:
    """The arguments of one call; `whole` when their last element has come."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._texts: Mapping[str, Text | None] = {each.name: each.text for each in parameters}
        self._opening = "{"
        self._value: _Text | JsonValue | None = None
        self.whole = False

    def read(self, text: str) -> tuple[str, int]:
        """What is new of the JSON, and how many characters of `text` it was read from; the others come again."""
        told, place = "", 0
        while not self.whole:
            piece, length = self._element(text[place:]) if self._value is None else self._value.read(text[place:])
            told, place = told + piece, place + length
            if self._value is not None and self._value.whole:
                self._value = None
            elif not piece and not length:
                break
        return told, place

    def _element(self, text: str) -> tuple[str, int]:
        """The next element's beginning, or the end of all."""
        found = _NEXT.search(text)
        if found is None:
            return "", 0
        opening, name = self._opening, found[1]
        if name is None:
            self.whole = True
            return "{}" if opening == "{" else "}", found.end()
        self._opening = ", "
        kind = self._texts.get(name)
        self._value = JsonValue() if kind is None else _Text(kind.nullable)
        return f"{opening}{dumps(name)}: ", found.end()


class _Text:
    """A string without quotes. The line break before its element's end is not its."""

    def __init__(self, nullable: bool) -> None:
        self._nullable = nullable
        self._quoted = False
        self.whole = False

    def read(self, text: str) -> tuple[str, int]:
        end = text.find(CLOSE)
        self.whole = end >= 0
        length = end if self.whole else len(text) - max(overlap(text, f"\n{CLOSE}"), overlap(text, CLOSE))
        said = text[:length].removesuffix("\n") if self.whole else text[:length]
        if self._nullable and not self._quoted:
            if self.whole and said == "null":
                return said, length
            if not self.whole and "null".startswith(said):
                return "", 0
        opening, closing = "" if self._quoted else '"', '"' if self.whole else ""
        self._quoted = True
        return f"{opening}{dumps(said)[1:-1]}{closing}", length


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` are a beginning of `mark`, and not all of it."""
    return next(length for length in range(len(mark) - 1, -1, -1) if text.endswith(mark[:length]))
