"""Forms of answers, compiled for one base's vocabulary: JSON Schemas, regular expressions, choices and grammars.

Owns who compiles when, and the refusal of what cannot be compiled. Implements `Grammars` of server/ports.py; knows no
routes. What is kept of it for later is the cache's.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import structlog
from llguidance import LLMatcher, LLTokenizer

from engine.errors import ConstraintFailed
from server.errors import BadRequest
from server.grammars.bounds import MAX_CALL_BYTES, MAX_GRAMMAR_BYTES, TooLarge, check_size, check_text
from server.grammars.cache import Cache, Compiled, key_of
from server.grammars.calls import call_grammar
from server.grammars.faults import reason
from server.grammars.lenient import Malformed
from server.grammars.matcher import Followed, matcher_of
from server.grammars.schema import schema_text
from server.grammars.trial import Trial, Unreadable
from server.structure import CallForm, Kind, Part, Structure

_log = structlog.get_logger(__name__)
T = TypeVar("T")

STACK_BYTES = 64 << 20


class Compiler:
    """Compiles one form at a time, in a thread, and lets tenants take turns: a flood delays its own tenant.

    A form that its tenant has sent before is in the cache, and waits for nobody. The vocabulary is made with the first
    form.
    """

    def __init__(
        self, vocabulary: Callable[[], LLTokenizer], trial: Callable[[str, str | list[str]], str] | None = None
    ) -> None:
        self._make = vocabulary
        self._made: LLTokenizer | None = None
        self._trial = trial or Trial()
        self._cache = Cache()
        self._limiter = anyio.CapacityLimiter(1)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def compile(self, structure: Structure, tenant: str) -> Compiled:
        """What makes a constraint for each answer. Raises BadRequest."""
        key = key_of(structure, tenant)
        if (kept := self._cache.get(key)) is not None:
            return kept
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        async with turn:
            if (kept := self._cache.get(key)) is not None:  # whoever's turn came first had sent it too
                return kept
            made = await anyio.to_thread.run_sync(self.compile_now, structure, limiter=self._limiter)
            self._cache.put(key, made)
            return made

    def compile_now(self, structure: Structure) -> Compiled:
        """As `compile`, while this thread waits. Only one may."""
        content = _text(structure)
        try:
            grammar = self._trial(structure.kind, content)
            if isinstance(structure.content, CallForm):
                grammar = call_grammar(structure.content, content[1:], by_token=True)
            self._made = made = self._made or self._vocabulary(structure)
            matcher: LLMatcher = _with_stack(lambda: matcher_of(made, grammar))
        except (Unreadable, ConstraintFailed) as error:
            sent = content if isinstance(content, str) else "\n".join(content)
            raise _refused(structure, error, sent) from None
        return lambda: Followed(matcher.deep_copy(), made.eos_tokens)

    def _vocabulary(self, structure: Structure) -> LLTokenizer:
        """Raises BadRequest for a base whose tokens the library cannot spell."""
        try:
            return self._make()
        except ValueError as error:
            _log.warning("no_structured_output", reason=str(error))
            message = f"`{structure.field}` is not supported with this base, whose tokenizer is of an unknown kind."
            raise BadRequest(
                f"{message} Ask for the form in the prompt.", structure.field, "unsupported_field"
            ) from None


def _text(structure: Structure) -> str | list[str]:
    """The form as text, as the choices' texts, or as a grammar and the schemas in it.

    Raises BadRequest for what is too large.
    """
    content = structure.content
    try:
        if isinstance(content, CallForm):
            return _call_texts(content)
        if isinstance(content, tuple):
            check_text("".join(content))
            return list(content)
        text = content if isinstance(content, str) else schema_text(content)
        check_text(text)
    except TooLarge as error:
        raise _refusal(structure, str(error)) from None
    return text


def _call_texts(form: CallForm) -> list[str]:
    """The grammar and the schemas in it. Raises TooLarge, and BadRequest for what is no schema."""
    texts, size = [], 0
    for part in form.parts:  # of which many may have the same definitions
        texts.append(_part_text(part))
        size += len(texts[-1].encode())
        check_size(size, MAX_CALL_BYTES)
    grammar = call_grammar(form, texts, by_token=False)
    check_text(grammar, MAX_GRAMMAR_BYTES)
    return [grammar, *texts]


def _part_text(part: Part) -> str:
    """Raises TooLarge, and BadRequest for what is no schema."""
    try:
        return schema_text(part.schema, part.strict)
    except Malformed as error:
        raise _refusal(Structure(part.field, "json", part.schema), str(error)) from None


def _refused(structure: Structure, error: Exception, sent: str) -> BadRequest:
    """It names the part that cannot be kept to, where that is known."""
    why, form = reason(str(error), sent), structure.content
    place = error.place if isinstance(error, Unreadable) else None
    if place is None or not isinstance(form, CallForm):
        return _refusal(structure, why)
    part = form.parts[place]
    may_be_lenient = part is not form.text and part.strict
    advice = " Without `strict`, what is not supported is not enforced." if may_be_lenient else ""
    return _refusal(Structure(part.field, "json", part.schema), why, advice)


def _with_stack(work: Callable[[], T]) -> T:
    """`work()` in a thread whose stack is larger than that of the process in which it was tried.

    What a thread has otherwise is the system's choice. The size is this process's for a moment, so that a thread of
    somebody else's may get it too; a stack takes no memory before it is used.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="grammar", daemon=True)
    usual = threading.stack_size(STACK_BYTES)
    try:
        thread.start()
    finally:
        threading.stack_size(usual)
    return done.result()


_FIXES: dict[Kind, str] = {
    "json": "Send a JSON Schema of keywords that docs/structured.md lists.",
    "regex": "Send a regular expression in Rust's syntax, without look-around and word boundaries.",
    "choice": "Send fewer or shorter choices.",
    "grammar": "Send a grammar in Lark or GBNF that begins at `start` or `root`.",
    "calls": "Send fewer functions, or simpler ones.",
}


def _refusal(structure: Structure, why: str, advice: str = "") -> BadRequest:
    message = f"`{structure.field}` cannot be kept to: {why}. {_FIXES[structure.kind]}{advice}"
    return BadRequest(message, structure.field, "grammar_invalid")
