"""Which of a function's parameters are text in an element of their own, and which are JSON."""

from collections.abc import Mapping
from typing import Any

import pytest

from server.tools.markup import Function
from server.tools.parameters import Parameter, Text, Unwritable, parameters

DEFS = {
    "city": {"enum": ["Oslo", "Rom"], "title": "City"},
    "again": {"$ref": "#/$defs/city", "description": "d"},
    "round": {"$ref": "#/$defs/round"},
    "or_round": {"anyOf": [{"$ref": "#/$defs/or_round"}, {"type": "null"}]},
    "a/b~c": {"type": "string"},
}
CITIES = Text(("Oslo", "Rom"))
SCHEMAS: Mapping[str, tuple[Any, Text | None]] = {
    "any string": ({"type": "string", "description": "d", "default": "x"}, Text()),
    "a length": ({"type": "string", "minLength": 1, "maxLength": 9}, Text((), 1, 9)),
    "choices": ({"type": "string", "enum": ["a", "b"]}, Text(("a", "b"))),
    "choices without a type": ({"enum": ["a", "b"]}, Text(("a", "b"))),
    "one choice": ({"const": "a"}, Text(("a",))),
    "or null": ({"type": ["string", "null"]}, Text(nullable=True)),
    "pydantic's optional one": (
        {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        Text(nullable=True),
    ),
    "a choice or null": ({"enum": ["a", None]}, Text(("a",), nullable=True)),
    "a null that the type does not allow": ({"type": "string", "enum": ["a", None]}, Text(("a",))),
    "a reference": ({"$ref": "#/$defs/city"}, CITIES),
    "a reference to a reference": ({"$ref": "#/$defs/again", "title": "t"}, CITIES),
    "an optional reference": (
        {"anyOf": [{"$ref": "#/$defs/city"}, {"type": "null"}]},
        Text(CITIES.choices, nullable=True),
    ),
    "an odd name": ({"$ref": "#/$defs/a~1b~0c"}, Text()),
    "a reference that goes round": ({"$ref": "#/$defs/round"}, None),
    "branches that go round": ({"$ref": "#/$defs/or_round"}, None),
    "a reference to nothing": ({"$ref": "#/$defs/none"}, None),
    "a reference elsewhere": ({"$ref": "https://example.org"}, None),
    "anything": ({}, None),
    "anything, said so": (True, None),
    "a number": ({"type": "integer"}, None),
    "a string or a number": ({"type": ["string", "integer"]}, None),
    "two kinds of string": ({"anyOf": [{"type": "string"}, {"enum": ["a"]}]}, None),
    "a pattern": ({"type": "string", "pattern": "a"}, None),
    "a format": ({"type": "string", "format": "date"}, None),
    "choices of a length": ({"enum": ["a"], "type": "string", "maxLength": 1}, None),
    "a choice that is a number": ({"enum": ["a", 1]}, None),
    "null alone": ({"enum": [None]}, None),
    "a choice that ends its element": ({"const": "a</parameter>"}, None),
    "a choice that ends its line": ({"const": "a\n"}, None),
    "many choices": ({"enum": [f"{n:0100}" for n in range(100)]}, None),
    "a length that is none": ({"type": "string", "minLength": True}, None),
    "a length below none": ({"type": "string", "minLength": 3, "maxLength": 2}, None),
    "no list": ({"enum": "ab"}, None),
}


def parameter(schema: Any) -> Parameter:
    whole = {"properties": {"p": schema, "q": {"type": "null"}}, "required": ["p"], "$defs": DEFS}
    first, second = parameters(Function("f", None, whole, "x"))
    assert (first.name, first.required, second.name, second.required) == ("p", True, "q", False)
    return first


@pytest.mark.parametrize(("schema", "text"), SCHEMAS.values(), ids=SCHEMAS)
def test_what_is_text(schema: Any, text: Text | None) -> None:
    assert parameter(schema).text == text


def test_json_keeps_to_its_schema_and_what_it_refers_to() -> None:
    assert parameter({"type": "integer"}).schema == {"type": "integer"}
    refers = {"items": {"$ref": "#/$defs/city"}}
    assert parameter(refers).schema == refers | {"$defs": DEFS}


def test_the_order_is_the_schemas_and_what_is_required_comes() -> None:
    schema = {"properties": {"b": {}, "never": False, "a": {}}, "required": ["a", "unnamed"]}
    found = parameters(Function("f", None, schema, "x"))
    assert [(each.name, each.required) for each in found] == [("b", False), ("a", True), ("unnamed", True)]


def test_a_schema_that_only_refers() -> None:
    whole = {"$ref": "#/$defs/All", "$defs": {"All": {"type": "object", "properties": {"a": {"type": "string"}}}}}
    assert [each.text for each in parameters(Function("f", None, whole, "x", strict=True))] == [Text()]


def test_no_parameters() -> None:
    for schema in (None, {}, {"type": "object", "properties": {}, "additionalProperties": False}):
        assert parameters(Function("f", None, schema, "x", strict=True)) == ()


MORE: Mapping[str, dict[str, Any]] = {
    "minProperties": {"minProperties": 1},
    "additionalProperties": {"additionalProperties": True},
    "anyOf": {"anyOf": [{"required": ["a"]}]},
    "a keyword": {"secret": 1},
}


@pytest.mark.parametrize(("keyword", "more"), MORE.items(), ids=MORE)
def test_keywords_beside_the_parameters(keyword: str, more: dict[str, Any]) -> None:
    named = {"properties": {"a": {}}} | more
    assert len(parameters(Function("f", None, named, "x"))) == 1
    for function in (Function("f", None, named, "x", strict=True), Function("f", None, more, "x")):
        with pytest.raises(Unwritable, match=f"^`?{keyword}`? is not supported") as refused:
            parameters(function)
        assert "secret" not in str(refused.value), "what is sent is not repeated"


UNWRITABLE: Mapping[str, dict[str, Any]] = {
    "no properties": {"properties": []},
    "no names": {"properties": {}, "required": "a"},
    "a name with a bracket": {"properties": {"a>b": {}}},
    "an empty name": {"required": [" "]},
    "no schema": {"properties": {"a": 5}},
    "one that nothing fits": {"properties": {"a": False}, "required": ["a"]},
    "a reference to nothing": {"$ref": "#/$defs/a"},
}


@pytest.mark.parametrize("schema", UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_cannot_be_written(schema: dict[str, Any]) -> None:
    with pytest.raises(Unwritable):
        parameters(Function("f", None, schema, "x"))
