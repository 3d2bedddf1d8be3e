"""Texts in elements, followed character by character: what is read of whatever may be written is a string that fits."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest

from engine.constraint import Constraint
from server.errors import BadRequest
from server.grammars.compiler import Compiler
from server.structure import CallForm, Structure
from server.tools.markup import MARKUPS, Function
from server.tools.parser import CallParser
from tests.support.structures import allowed_bytes, in_elements, keeps_to
from tests.support.tokenizer import byte_vocabulary

CODER = MARKUPS["qwen3_coder"]
BEGUN = "<tool_call>\n<function=f>\n<parameter=p>\n"


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(byte_vocabulary)


def function(schema: Any, **more: Any) -> Function:
    return Function("f", None, {"properties": {"p": schema}, "required": ["p"]} | more, "tools[0].function.parameters")


def start(compiler: Compiler, *functions: Function) -> Constraint:
    form = CallForm(CODER, functions, True, 1, None, {}, in_elements(functions))
    return compiler.compile_now(Structure("tools", "calls", form))()


def goes(answer: Constraint, text: str) -> bool:
    for byte in text.encode():
        if answer.complete or byte not in allowed_bytes(answer):
            return False
        answer.accept(byte)
    return answer.complete


def told(text: str, of: Function) -> Any:
    (call,) = CallParser(CODER, False, in_elements([of])).push(text).calls
    return json.loads(call.arguments)["p"]


TEXTS: Mapping[str, dict[str, Any]] = {
    "any": {"type": "string"},
    "of a length": {"type": "string", "minLength": 1, "maxLength": 2},
    "up to a length": {"type": "string", "maxLength": 2},
    "empty": {"type": "string", "maxLength": 0},
    "from a length on": {"type": "string", "minLength": 2},
    "choices": {"enum": ["a", "\na", "", "é/b.", "[\t]"]},
}


@pytest.mark.parametrize("schema", TEXTS.values(), ids=TEXTS)
def test_a_text_may_be_written_if_what_is_read_of_it_fits(compiler: Compiler, schema: dict[str, Any]) -> None:
    of = function(schema)
    begun = [("a", "\n", "é")] * 4
    written = ["".join(each) for length in range(5) for each in itertools.product(*begun[:length])]
    for text in [*written, "é/b.", "é/bc", "[\t]", "null"]:
        answer = f"{BEGUN}{text}</parameter>\n</function>\n</tool_call>"
        value = told(answer, of)
        assert value == text.removesuffix("\n")
        assert goes(start(compiler, of), answer) == keeps_to(value, schema), repr(text)


@pytest.mark.parametrize("more", [{}, {"minLength": 5}, {"maxLength": 3}, {"enum": ["a", None]}], ids=str)
def test_a_text_may_be_null(compiler: Compiler, more: dict[str, Any]) -> None:
    schema = {"anyOf": [{"type": "string"} | more, {"type": "null"}]} if "enum" not in more else more
    of = function(schema)
    for text in ("null", "null\n", "nul", "nullen", "a"):
        answer = f"{BEGUN}{text}</parameter></function></tool_call>"
        value = told(answer, of)
        assert (value is None) == (text.strip() == "null")
        assert goes(start(compiler, of), answer) == keeps_to(value, schema), text


def test_an_element_ends_where_its_end_first_comes(compiler: Compiler) -> None:
    answer = start(compiler, function({"type": "string", "minLength": 5}))
    assert not goes(answer, f"{BEGUN}ab</parameter")
    assert ord(">") not in allowed_bytes(answer), "what came before is too short"


def test_a_value_that_is_json(compiler: Compiler) -> None:
    schema = {"type": "array", "items": {"$ref": "#/$defs/a"}}
    of = function(schema, **{"$defs": {"a": {"enum": ["x", 1]}}})
    for text, fits in (('["x", 1]\n', True), ("[]", True), ('["y"]', False), ("x", False)):
        assert goes(start(compiler, of), f"{BEGUN}{text}</parameter>\n</function>\n</tool_call>") == fits


def test_names_are_as_they_are(compiler: Compiler) -> None:
    of = Function("f", None, {"properties": {'größe "/.': {"type": "integer"}}}, "x")
    answer = '<tool_call><function=f><parameter=größe "/.>\n5</parameter></function></tool_call>'
    assert goes(start(compiler, of), answer)
    (call,) = CallParser(CODER, False, in_elements([of])).push(answer).calls
    assert json.loads(call.arguments) == {'größe "/.': 5}


def test_a_fault_names_its_function(compiler: Compiler) -> None:
    fine = Function("g", None, {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}, "tools[1]")
    bad = Function("f", None, {"properties": {"a": {"type": "string"}, "p": {"not": {}}}}, "tools[2]", strict=True)
    with pytest.raises(BadRequest, match="Unimplemented keys") as refused:
        start(compiler, fine, bad)
    assert refused.value.param == "tools[2]" and refused.value.message.endswith("is not enforced.")


def test_as_many_parameters_as_a_large_server_of_tools_has(compiler: Compiler) -> None:
    kinds: list[Any] = [
        {"type": "string"},
        {"type": "integer"},
        {"enum": ["a", "b"]},
        {"type": "string", "minLength": 1},
    ]
    many = [
        Function(f"f{n}", None, {"properties": {f"p{n % 9}_{at}": kinds[at % 4] for at in range(8)}}, "x")
        for n in range(128)
    ]
    answer = "<tool_call>\n<function=f127>\n<parameter=p1_3>\nx\n</parameter>\n</function>\n</tool_call>"
    assert goes(start(compiler, *many), answer)


BOMBS: Mapping[str, dict[str, Any]] = {
    "definitions for each": {
        "properties": {f"p{n}": {"$ref": "#/$defs/a"} for n in range(8000)},
        "$defs": {"a": {"type": "integer"}, "b": {"enum": ["x" * 1000] * 200}},
    },
    "names": {"properties": {f"p{n}" * 20: {"type": "string"} for n in range(16_000)}},
}


@pytest.mark.parametrize("schema", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused(compiler: Compiler, schema: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refused:
        start(compiler, Function("f", None, schema, "tools[0]"))
    assert refused.value.code == "grammar_invalid"
