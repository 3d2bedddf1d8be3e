"""Where a JSON value ends within a text that comes piece by piece.

Knows neither markups nor calls.
"""

import re

_MARKS = re.compile(r'[\\"{}\[\]<]')


class JsonEnd:
    """Of one value. An object, a list and a string show where they end; other values end before a `<`."""

    def __init__(self) -> None:
        self._depth = 0
        self._escaped = False
        self.in_string = False
        self.whole = False

    def length(self, text: str) -> int:
        """How many characters of `text`, which goes on with it and is not empty, are its."""
        place, self._escaped = int(self._escaped), False
        while found := _MARKS.search(text, place):
            mark, place = found[0], found.end()
            if mark == '"':
                self.in_string = not self.in_string
                self.whole = not self.in_string and self._depth == 0
            elif self.in_string:
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
