"""Forms as they are compiled, followed byte by byte: what is allowed is what a plain reading of the form says."""

import itertools
import random
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from time import process_time
from typing import Any

import anyio
import pytest
from llguidance import LLMatcher

from engine.constraint import Constraint
from engine.errors import ConstraintFailed
from server.errors import BadRequest
from server.grammars.compiler import Compiler
from server.structure import ANY_OBJECT, Kind, Structure
from tests.support.structures import COMPACT, allowed_bytes, follow, keeps_to, parsed, random_schema, written
from tests.support.tokenizer import END, START, byte_vocabulary


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(byte_vocabulary)


def constraint(compiler: Compiler, kind: Kind, content: Any) -> Constraint:
    return compiler.compile_now(Structure("field", kind, content))()


CHOICES = [
    ("yes", "no"),
    ("a", "ab", "abc", "b"),
    ("one", "one"),
    ("größer", "groß", "😀", "日本"),
    ('quo"te', "back\\slash", "new\nline", "a/b", "(a|b)*", "[x]{2}", "^$", "#&-~", "<s>", "_ ", "\t", "%s", "`"),
    tuple(str(number) for number in range(300)),
]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: choices[0])
def test_choices_allow_what_some_choice_goes_on_with(compiler: Compiler, choices: tuple[str, ...]) -> None:
    texts = {choice.encode() for choice in choices}
    for text in texts:
        answer = constraint(compiler, "choice", choices)
        for length in range(len(text) + 1):
            begun = text[:length]
            longer = {other[length] for other in texts if other.startswith(begun) and len(other) > length}
            assert allowed_bytes(answer) == longer | ({END} if begun in texts else set())
            assert answer.complete == (begun in texts and not longer)
            if length < len(text):
                answer.accept(text[length])


REGEXES = ["ab|abc", "a*b", "(ab?){1,2}", "[ab]{0,3}1?", "a(1|b1)+", "^ab$", "a?1?b?", r"(a|\d)b{2}", "(?i)aB"]


@pytest.mark.parametrize("pattern", REGEXES)
def test_a_regular_expression_allows_what_some_match_goes_on_with(compiler: Compiler, pattern: str) -> None:
    """Over all texts of up to six letters, so prefixes up to three are decided by them."""
    letters = "abAB1"
    texts = ["".join(text) for length in range(7) for text in itertools.product(letters, repeat=length)]
    matches = [text for text in texts if re.fullmatch(pattern, text)]
    prefixes = {text[:end] for text in matches for end in range(len(text) + 1)}
    for begun in sorted(prefix for prefix in prefixes if len(prefix) <= 3):
        answer = constraint(compiler, "regex", pattern)
        follow(answer, begun.encode())
        allowed = allowed_bytes(answer)
        for letter in letters:
            assert (ord(letter) in allowed) == (begun + letter in prefixes), (begun, letter)
        assert (END in allowed) == (begun in matches)


def test_digits_are_those_of_every_script_in_a_regex_and_ten_in_a_schema(compiler: Compiler) -> None:
    arabic_three = "\N{ARABIC-INDIC DIGIT THREE}".encode()
    assert arabic_three[0] in allowed_bytes(constraint(compiler, "regex", r"\d"))
    answer = constraint(compiler, "json", {"type": "string", "pattern": r"^\d$"})
    follow(answer, b'"')
    allowed = allowed_bytes(answer)
    assert ord("3") in allowed and arabic_three[0] not in allowed


def test_an_answer_that_can_only_end_is_complete(compiler: Compiler) -> None:
    answer = constraint(compiler, "regex", "a{3}")
    for done in (False, False, False, True):
        assert answer.complete is done
        if not done:
            answer.accept(ord("a"))
    assert allowed_bytes(answer) == {END}


def test_asking_twice_changes_nothing_and_answers_do_not_meet(compiler: Compiler) -> None:
    make = compiler.compile_now(Structure("field", "regex", "[ab]{2}"))
    first, second = make(), make()
    assert first.allowed() == first.allowed() == second.allowed()
    follow(first, b"ab")
    assert first.complete and not second.complete
    assert allowed_bytes(second) == {ord("a"), ord("b")}


@pytest.mark.parametrize("seed", range(60))
def test_random_schemas_are_kept_to(compiler: Compiler, seed: int) -> None:
    schema = random_schema(random.Random(seed))
    make = compiler.compile_now(Structure("field", "json", schema | COMPACT))
    for number in range(8):
        answer = written(make(), seed=1000 * seed + number)
        assert answer is not None, "these are short"
        assert keeps_to(parsed(answer), schema), (schema, answer)


def test_any_json_object(compiler: Compiler) -> None:
    answer = constraint(compiler, "json", ANY_OBJECT)
    follow(answer, b'{"a": [1, {"b": null}], "\xc3\xa9\\n": -1.5e3}')
    assert answer.complete
    other = constraint(compiler, "json", ANY_OBJECT)
    assert allowed_bytes(other) == {ord("{")}


def test_space_between_parts_of_json_ends(compiler: Compiler) -> None:
    answer = constraint(compiler, "json", ANY_OBJECT)
    follow(answer, b"{" + b"\n\t  " * 8)
    assert allowed_bytes(answer) == {ord('"'), ord("}")}


def test_properties_come_in_the_schemas_order(compiler: Compiler) -> None:
    properties = {"z": {"type": "null"}, "a": {"type": "null"}}
    answer = constraint(
        compiler, "json", {"type": "object", "properties": properties, "required": ["a", "z"]} | COMPACT
    )
    follow(answer, b'{"z":null,"a":null')


GRAMMARS = {
    "Lark": 'start: greeting " " name "!"?\ngreeting: "hi" | "bye"\nname: /[a-z]{1,3}/',
    "GBNF": 'root ::= greeting " " name "!"?\ngreeting ::= "hi" | "bye"\nname ::= [a-z] ([a-z] [a-z]?)?',
}


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
def test_grammars(compiler: Compiler, grammar: str) -> None:
    make = compiler.compile_now(Structure("field", "grammar", grammar))
    for seed in range(20):
        assert re.fullmatch(rb"(hi|bye) [a-z]{1,3}!?", written(make(), seed) or b"")


def test_a_grammar_cannot_end_before_its_end(compiler: Compiler) -> None:
    """Lark can say "any token but", and the end is one."""
    answer = constraint(compiler, "grammar", 'start: "a" <[^98]> "b"')
    follow(answer, b"a")
    assert allowed_bytes(answer) == {*range(START)} - {ord("b"), END} | {START}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


FAULTS: Mapping[str, tuple[Kind, Any, str]] = {
    "no regex": ("regex", "(secret", "unclosed group"),
    "look-ahead": ("regex", "secret(?=x)", "look-around"),
    "no grammar": ("grammar", "secret", "Expected ::="),
    "a rule that is not there": ("grammar", "start: secret", "unknown name"),
    "a rule without an end": ("grammar", "start: start", "no text fits it"),
    "a type that is not there": ("json", {"type": "secret"}, "Invalid type: …"),
    "a keyword that is not served": ("json", {"not": {"const": "secret"}}, 'Unimplemented keys: ["not"]'),
    "a format that is not served": ("json", {"type": "string", "format": "secret"}, "Unknown format: …"),
    "a format of the standard": (
        "json",
        {"type": "string", "format": "uri-reference"},
        "Unknown format: uri-reference",
    ),
    "a token by name": ("grammar", 'start: "a" <|im_end|>', "names tokens"),
    "a token by number": ("grammar", 'start: "a" <[40000]>', "names tokens"),
    "a schema of somewhere else": ("json", {"$ref": "https://secret.example/x"}, "is not present"),
    "a schema that nothing keeps to": ("json", {"enum": []}, "Unsatisfiable"),
    "a schema that is itself": ("json", {"$ref": "#"}, "no text fits it"),
    "a number that is none": ("json", {"const": float("inf")}, ""),
    "a long regex": ("regex", "secret" * 20_000, "longer than 65536 bytes"),
    "a long schema": ("json", {"const": "secret" * 20_000}, "longer than 65536 bytes"),
    "long choices": ("choice", ("secret" * 6_000, "secret" * 6_000), "longer than 65536 bytes"),
    "many values": ("json", {"enum": list(range(20_000))}, "more than 16384 values"),
    "a deep schema": ("json", deep(70), "more than 64 levels"),
}


@pytest.mark.parametrize(("kind", "content", "why"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_kept_to_is_refused(compiler: Compiler, kind: Kind, content: Any, why: str) -> None:
    with pytest.raises(BadRequest) as refused:
        compiler.compile_now(Structure("a.field", kind, content))
    assert refused.value.code == "grammar_invalid" and refused.value.param == "a.field"
    assert refused.value.message.startswith("`a.field` cannot be kept to: ") and why in refused.value.message
    assert "secret" not in refused.value.message


def chain(length: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"{n:x}": {"items": {"$ref": f"#/$defs/{n + 1:x}"}} for n in range(length)}
    return {"$defs": definitions | {f"{length:x}": {"type": "string"}}, "$ref": "#/$defs/0"}


def rules(length: int) -> str:
    return "\n".join(["start: r0", *(f'r{n}: (r{n + 1} "b")+ | "c"' for n in range(length)), f'r{length}: "a"'])


BOMBS: Mapping[str, tuple[Kind, Any]] = {
    "repetitions": ("regex", "(((a{1000}){1000}){1000}){1000}"),
    "what may be empty": ("regex", ".*" * 20_000),
    "parentheses": ("regex", "(" * 30_000 + "a" + ")" * 30_000),
    "a long chain of references": ("json", chain(1600)),
    "patterns of one text": ("json", {"allOf": [{"type": "string", "pattern": f"^.*{n}.*$"} for n in range(500)]}),
    "alternatives of everything": (
        "json",
        {"allOf": [{"anyOf": [{"properties": {f"{n}{m}": {"type": "string"}}} for m in "abc"]} for n in range(12)]},
    ),
    "a long chain of rules": ("grammar", rules(2000)),
    "empty lines": ("grammar", "root ::= " + "\n" * 60_000 + "x"),
    "ambiguity": ("grammar", 'start: s\ns: s s s | s s | "a" | '),
}


@pytest.mark.parametrize(("kind", "content"), BOMBS.values(), ids=BOMBS)
def test_bombs_end_soon(compiler: Compiler, kind: Kind, content: Any) -> None:
    """Refused, or compiled and then followed to its end, or given up before much time has gone into it."""
    began = process_time()
    try:
        answer = constraint(compiler, kind, content)
    except BadRequest as error:
        assert error.code == "grammar_invalid"
    else:
        with suppress(ConstraintFailed):
            written(answer, seed=0, longest=100_000)
    assert process_time() - began < 5
    assert written(constraint(compiler, "regex", "yes|no"), seed=1) in (b"yes", b"no"), "the next one is read"


@pytest.mark.anyio
async def test_tenants_take_turns(compiler: Compiler) -> None:
    """Somebody who comes behind a flood of another tenant's waits for one of its forms, or two."""
    read: list[str] = []

    def slow(kind: str, content: str | list[str]) -> str:
        time.sleep(0.02)
        read.append(str(content))
        return LLMatcher.grammar_from_regex("a")

    shared = Compiler(byte_vocabulary, slow)
    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(shared.compile, Structure("f", "regex", f"flood {number}"), "loud")
        await anyio.sleep(0.005)
        tasks.start_soon(shared.compile, Structure("f", "regex", "one"), "quiet")
    assert len(read) == 9 and read.index("one") <= 2


@pytest.mark.anyio
async def test_the_loop_goes_on_while_a_form_is_compiled(compiler: Compiler) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        with pytest.raises(BadRequest):
            await compiler.compile(Structure("f", "regex", ".*" * 20_000), "")
        tasks.cancel_scope.cancel()
    assert ticks > 20, "it takes a second of processor time"
