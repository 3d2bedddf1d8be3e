"""From token ids to text, a few at a time.

Owns one sequence's text: never half a character, never a part of a stop string. Knows a `decode` function, not
which tokenizer it belongs to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

Decode = Callable[[Sequence[int]], str]

_NONE: Mapping[int, str] = MappingProxyType({})
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoding makes of the first bytes of a character


@dataclass(frozen=True, slots=True)
class Piece:
    """New text that may be shown, and the stop string that ended it, if one did."""

    text: str
    stopped_by: str | None = None


class TextStream:
    """Decodes what is new in the light of what came before (a word's leading space depends on it), and no more.

    Text that could still become a stop string is held back until that is settled. `shown` has the text of tokens that
    `decode` leaves out and that are to appear.
    """

    def __init__(
        self, decode: Decode, prompt: Sequence[int], stop: Sequence[str], shown: Mapping[int, str] = _NONE
    ) -> None:
        self._decode, self._shown = decode, shown
        self._stop = tuple(stop)
        self._ids = list(prompt[-_CONTEXT:])  # what is decoded again with every token
        self._read = len(self._ids)  # ids before this one have become text
        self._stopped = False  # by a stop string: nothing that follows it is shown
        self._given = len(decode(self._ids))  # characters of the ids' text that are the prompt's, or were given out
        self._held = ""  # text that is read but not yet shown

    def push(self, token: int, *, may_stop: bool = True) -> Piece:
        """Add one token. Unless `may_stop`, its text passes without being compared with stop strings."""
        self._ids.append(token)
        shown = self._shown.get(token)
        text = self._new_text() if shown is None else self._unfinished() + shown
        return self._release(text, may_stop, last=False)

    def finish(self) -> Piece:
        """Give out everything that is held, an unfinished character as U+FFFD; after a stop string, nothing."""
        if self._stopped:
            return Piece("")
        return self._release(self._new_text(last=True), may_stop=True, last=True)

    def _new_text(self, last: bool = False) -> str:
        now = self._decode(self._ids)
        sure = len(now) if last else _sure(now)
        text = now[self._given : sure]
        self._given = min(max(self._given, sure), len(now))
        if text and sure == len(now):
            self._keep_from(self._read)
            self._read = len(self._ids)
        elif len(self._ids) > _LONGEST:  # bytes that never become characters, or tokens without any text
            self._keep_from(len(self._ids) - _LONGEST // 2)
        return text

    def _unfinished(self) -> str:
        """All new text, with U+FFFD for an unfinished character, which nothing that follows can finish."""
        text = self._new_text(last=True)
        self._given = len(self._decode(self._ids))
        return text

    def _keep_from(self, start: int) -> None:
        """Forget the ids before `start`; what remains has been given out as far as it is sure."""
        self._ids = self._ids[start:]
        self._read = max(0, self._read - start)
        self._given = _sure(self._decode(self._ids))

    def _release(self, text: str, may_stop: bool, last: bool) -> Piece:
        self._held += text
        if not may_stop:
            return self._show(len(self._held))
        found = min(((self._held.find(stop), stop) for stop in self._stop if stop in self._held), default=None)
        if found is not None:
            piece = Piece(self._held[: found[0]], stopped_by=found[1])
            self._held = ""
            self._stopped = True
            return piece
        return self._show(len(self._held) - (0 if last else self._undecided()))

    def _undecided(self) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stop), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0

    def _show(self, length: int) -> Piece:
        piece = Piece(self._held[:length])
        self._held = self._held[length:]
        return piece


def _sure(text: str) -> int:
    """How many characters no further token can change: up to three bytes at the end may be half a character."""
    return max(len(text.rstrip(_INCOMPLETE)), len(text) - 3)


_LONGEST = 32  # twice what must be kept: a few characters of up to four bytes, one token each
_CONTEXT = 6  # enough prompt for a decoder to know whether a word's leading space is to be written
