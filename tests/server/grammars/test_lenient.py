"""Of schemas that cannot be kept to as a whole, the rest is kept to, and nothing that they allow is forbidden."""

import random
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadRequest
from server.grammars.compiler import Compiler
from server.grammars.lenient import Malformed, lenient
from server.structure import CallForm, Structure
from server.tools.markup import HERMES, Function
from server.tools.parser import CallParser
from tests.support.structures import COMPACT, keeps_to, parsed, random_schema, written
from tests.support.tokenizer import byte_vocabulary

NEVER: dict[str, Any] = {"pattern": "^(?!)"}
"""Of no text."""
UNSERVED: tuple[dict[str, Any], ...] = (
    {"not": {}},
    {"if": {}, "then": False},
    {"contains": False, "minContains": 9},
    {"propertyNames": False},
    {"unevaluatedProperties": False, "unevaluatedItems": False},
    {"dependentSchemas": {"a": False}, "dependentRequired": {"a": ["none"]}},
    {"format": "of-nothing"},
    {"uniqueItems": True},
    NEVER,
)


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(byte_vocabulary)


def form(parameters: dict[str, Any], strict: bool = False) -> Structure:
    function = Function("f", None, parameters, "tools[0].function.parameters", strict)
    return Structure("tools", "calls", CallForm(HERMES, (function,), True, 1, None, {}))


def called(compiler: Compiler, parameters: dict[str, Any], seed: int) -> Any:
    """Arguments, drawn at random."""
    answer = written(compiler.compile_now(form(parameters))(), seed, 4000)
    assert answer is not None
    (call,) = CallParser(HERMES, anywhere=False).push(answer.decode()).calls
    return parsed(call.arguments)


def with_more(draw: random.Random, schema: Any) -> Any:
    """The schema with keywords everywhere that are not served, and by some of which nothing is valid."""
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    for key in ("anyOf", "items", "properties"):
        match made.get(key):
            case list() as several:
                made["oneOf" if draw.random() < 0.5 else key] = [with_more(draw, each) for each in several]
            case dict() as one if key == "items":
                made[key] = with_more(draw, one)
            case dict() as named:
                made[key] = {name: with_more(draw, each) for name, each in named.items()}
    if "oneOf" in made:
        del made["anyOf"]
    if made.get("properties", {}).keys() - set(made.get("required", [])):
        made |= {"minProperties": 9}
    return draw.choice(UNSERVED) | made


@pytest.mark.parametrize("seed", range(40))
def test_what_is_served_is_kept_to(compiler: Compiler, seed: int) -> None:
    draw = random.Random(seed)
    schema: dict[str, Any] = {"type": "object", "properties": {"p": random_schema(draw)}, "required": ["p"]}
    schema["additionalProperties"] = False
    asked = with_more(draw, schema)
    with pytest.raises(BadRequest):
        compiler.compile_now(form(asked, strict=True))
    for number in range(3):
        arguments = called(compiler, asked | COMPACT, 10 * seed + number)
        assert keeps_to(arguments, schema), (asked, arguments)


def test_names_of_a_pattern_that_is_left_out_may_come(compiler: Compiler) -> None:
    """They are told from others by it alone."""
    for patterns in ({"^(?!x)": {"const": 1}}, {"^a": {"const": 1}, "^ab": {"const": 2}}):
        schema = {"patternProperties": patterns, "additionalProperties": False}
        assert lenient(schema) == {}
    one = {"patternProperties": {"^a{1,3}$": {"const": 1}}, "additionalProperties": False, "maxProperties": 1}
    assert lenient(one) == one and called(compiler, one | COMPACT, 1) in ({}, {"a": 1}, {"aa": 1}, {"aaa": 1})


AROUND = ["(?=a)", "a(?!b)", "(?<=a)b", "(?<!a)b", r"\bword\b", r"\B", r"(a)\1", r"(?<n>a)\k<n>", r"[(]\b"]
NOT_AROUND = [r"\\b", "[(?=]", r"\(?=", "(?<name>a)", "(?:a)", r"[a\](?=]", r"\1"[1:], "[", "]" * 9]


@pytest.mark.parametrize(("patterns", "kept"), [(AROUND, False), (NOT_AROUND, True)])
def test_patterns_that_look_around_are_left_out(patterns: list[str], kept: bool) -> None:
    for pattern in patterns:
        assert ("pattern" in lenient({"pattern": pattern})) is kept, pattern


@pytest.mark.parametrize(
    "schema",
    [{"not": 5}, {"items": {"uniqueItems": 0}}, {"dependentSchemas": []}, {"additionalProperties": 1}],
    ids=str,
)
def test_what_is_no_schema_is_told(compiler: Compiler, schema: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="is of a wrong type"):
        lenient(schema)
    with pytest.raises(BadRequest, match="is of a wrong type") as refused:
        compiler.compile_now(form({"properties": {"a": schema}}))
    assert refused.value.param == "tools[0].function.parameters"


def test_who_asks_the_library_for_strictness_has_it(compiler: Compiler) -> None:
    with pytest.raises(BadRequest, match="not"):
        compiler.compile_now(form({"not": {}, "x-guidance": {"lenient": False}}))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["a", "ab", "b"]),
    lambda within: (
        st.lists(within, max_size=3) | st.dictionaries(st.sampled_from(["a", "ab", "b"]), within, max_size=3)
    ),
    max_leaves=5,
)
PATTERNS = st.sampled_from(["^a", "b", "^(?!a)", r"\\b"])
SCHEMAS = st.recursive(
    st.fixed_dictionaries({}, optional={"const": VALUES, "pattern": PATTERNS}),
    lambda within: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from(["a", "b"]), within, max_size=2),
            "patternProperties": st.dictionaries(PATTERNS, within, max_size=2),
            "additionalProperties": within | st.booleans(),
            "required": st.lists(st.sampled_from(["a", "b"]), unique=True),
            "minProperties": st.integers(0, 2),
            "maxProperties": st.integers(0, 2),
            "items": within,
            "anyOf": st.lists(within, min_size=1, max_size=2),
        },
    ),
    max_leaves=4,
)


@given(SCHEMAS, VALUES)
def test_nothing_becomes_invalid(schema: Any, value: Any) -> None:
    if jsonschema_rs.is_valid(schema, value):
        assert jsonschema_rs.is_valid(dict(lenient(schema)), value)
