"""A JSON value within a text that comes piece by piece, and where it ends.

Knows neither markups nor calls.
"""

import re

from server.tools.markup import SPACE

_MARKS = re.compile(r'[\\"{}\[\]<]')


class JsonValue:
    """One value as it is written; `whole` when its end has come. An object, a list and a string show where they end;
    other values end before a `<`."""

    def __init__(self) -> None:
        self._depth = 0
        self._escaped = False
        self._in_string = False
        self.whole = False

    def read(self, text: str) -> tuple[str, int]:
        """What of `text` is its, and how many characters are done with; the others come again, with more behind them.

        Space behind a number is not its, and a number does not show its end: such space comes again.
        """
        if not text:
            return "", 0
        length = self._length(text)
        inside = self._in_string or self._depth > 0
        said = text[:length] if inside else text[:length].rstrip(SPACE)
        return said, length if self.whole else len(said)

    def _length(self, text: str) -> int:
        """How many characters of `text`, which goes on with it and is not empty, are its."""
        place, self._escaped = int(self._escaped), False
        while found := _MARKS.search(text, place):
            mark, place = found[0], found.end()
            if mark == '"':
                self._in_string = not self._in_string
                self.whole = not self._in_string and self._depth == 0
            elif self._in_string:
                self._escaped = mark == "\\" and place == len(text)
                place += mark == "\\"
            elif mark in "{[":
                self._depth += 1
            elif mark in "}]":
                self._depth -= 1
                self.whole = self._depth == 0
            elif mark == "<":
                self.whole = True
                return found.start()
            if self.whole:
                return place
        return len(text)
