"""What is taken out of schemas changes nothing of what they say."""

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.grammars.compiler import Compiler
from server.grammars.vacuous import without_vacuous
from server.structure import Structure
from tests.support.tokenizer import byte_vocabulary

SAID = {"uniqueItems": False, "propertyNames": {"type": "string"}}
TAKEN_OUT: dict[str, tuple[Any, Any]] = {
    "of a record, as Zod has it": (
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}},
        {"type": "object", "additionalProperties": {}},
    ),
    "of an array": ({"type": "array", "uniqueItems": False}, {"type": "array"}),
    "everywhere": (
        {"properties": {"a": SAID}, "anyOf": [SAID], "items": SAID, "$defs": {"x": {"items": [SAID]}}},
        {"properties": {"a": {}}, "anyOf": [{}], "items": {}, "$defs": {"x": {"items": [{}]}}},
    ),
}
LEFT: dict[str, Any] = {
    "what asks for something": {"uniqueItems": True, "propertyNames": {"pattern": "^a"}},
    "a property of this name": {"properties": {"uniqueItems": False, "propertyNames": True}},
    "values": {"const": SAID, "enum": [SAID], "default": SAID, "examples": [SAID]},
    "what is no schema": {"properties": 5, "anyOf": SAID, "propertyNames": 1, "uniqueItems": 0},
}


@pytest.mark.parametrize(("schema", "less"), TAKEN_OUT.values(), ids=TAKEN_OUT)
def test_what_asks_for_nothing_is_taken_out(schema: Any, less: Any) -> None:
    assert without_vacuous(schema) == less


@pytest.mark.parametrize("schema", [*LEFT.values(), True, [SAID]], ids=str)
def test_all_else_is_left(schema: Any) -> None:
    assert without_vacuous(schema) == schema


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["a", "b"]),
    lambda within: st.lists(within, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), within, max_size=2),
    max_leaves=5,
)
SCHEMAS = st.recursive(
    st.fixed_dictionaries({}, optional={"type": st.sampled_from(["object", "array", "string"]), "const": VALUES}),
    lambda within: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from(["a", "uniqueItems"]), within, max_size=2),
            "items": within,
            "anyOf": st.lists(within, min_size=1, max_size=2),
            "additionalProperties": within,
            "uniqueItems": st.booleans(),
            "propertyNames": st.sampled_from([{"type": "string"}, {}, True, {"const": "a"}]),
        },
    ),
    max_leaves=4,
)


@given(SCHEMAS, VALUES)
def test_it_says_the_same(schema: Any, value: Any) -> None:
    assert jsonschema_rs.is_valid(without_vacuous(schema), value) == jsonschema_rs.is_valid(schema, value)


def test_such_schemas_are_kept_to() -> None:
    schema, _ = TAKEN_OUT["of a record, as Zod has it"]
    Compiler(byte_vocabulary).compile_now(Structure("f", "json", schema | {"uniqueItems": False}))
