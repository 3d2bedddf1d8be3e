"""What llguidance makes of a form, and one answer's place in it.

Owns the library's limits, the spelling of its grammars, and `Followed`, the engine's Constraint. Knows neither bodies
nor processes; the process that tries forms imports it too, so it imports little.
"""

from collections.abc import Callable, Collection
from time import thread_time
from typing import TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from engine.errors import ConstraintFailed
from server.grammars.literal import literal

T = TypeVar("T")

FREE_S, TOKEN_S = 0.25, 0.002
"""Processor seconds that following an answer may take: some at once, and some more with each of its tokens.

Everybody's step waits for it. A fraction of a millisecond a token is usual.
"""


def limits() -> LLParserLimits:
    """What bounds a compilation and a step. By the defaults an ambiguous grammar may take 0.4 s a token."""
    return LLParserLimits(
        max_items_in_row=500,
        step_max_items=10_000,
        initial_lexer_fuel=100_000,
        step_lexer_fuel=20_000,
        max_lexer_states=10_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def spelled(kind: str, content: str | list[str]) -> str:
    """A form as the library's grammar. Raises ValueError where that shows that it cannot be read."""
    if kind == "calls":
        return content[0]
    if not isinstance(content, str):
        return str(LLMatcher.grammar_from_regex("|".join(map(literal, content))))
    if kind == "json":
        return LLMatcher.grammar_from_json_schema(content)
    return LLMatcher.grammar_from_regex(content) if kind == "regex" else grammar_from("grammar", content)


def matcher_of(vocabulary: LLTokenizer, grammar: str) -> LLMatcher:
    """Raises ConstraintFailed, also for what only shows at the first token: that no text fits."""
    matcher = _unpanicked(lambda: LLMatcher(vocabulary, grammar, log_level=0, limits=limits()))
    if matcher.is_error():
        raise ConstraintFailed(matcher.get_error())
    Followed(matcher.deep_copy(), ()).allowed()
    return matcher


class Followed:
    """A Constraint: one answer's place in a grammar."""

    def __init__(self, matcher: LLMatcher, eos: Collection[int]) -> None:
        self._matcher, self._eos = matcher, eos
        self._left_s = FREE_S

    def allowed(self) -> bytes:
        return self._timed(self._allowed)

    def accept(self, token: int) -> None:
        self._left_s += TOKEN_S
        if not self._timed(lambda: self._matcher.consume_token(token)):
            raise ConstraintFailed(self._matcher.get_error())

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped()

    def _allowed(self) -> bytes:
        bits = bytearray(self._matcher.compute_bitmask())
        if self._matcher.is_error():  # the library allows the end then, wherever it is
            raise ConstraintFailed(self._matcher.get_error())
        if not self._matcher.is_accepting():
            for token in self._eos:  # a grammar can name it elsewhere
                bits[token // 8] &= ~(1 << token % 8)
        if not bits.strip(b"\0"):
            raise ConstraintFailed("no token fits")
        return bytes(bits)

    def _timed(self, work: Callable[[], T]) -> T:
        """Raises ConstraintFailed when too much time has gone into one answer."""
        began = thread_time()
        done = _unpanicked(work)
        self._left_s -= thread_time() - began
        if self._left_s < 0:
            raise ConstraintFailed("it takes too long")
        return done


def _unpanicked(work: Callable[[], T]) -> T:
    """The library's panics as ConstraintFailed. They are no Exceptions, and would end the thread."""
    try:
        return work()
    except BaseException as error:
        if type(error).__module__ == "pyo3_runtime":
            raise ConstraintFailed("it cannot be read") from error
        raise
