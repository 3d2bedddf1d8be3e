"""Keywords of JSON Schema that ask for nothing, as generators of schemas write them, and that the grammar library does
not know: taken out, since nothing is lost.

Knows where a schema has schemas within it. Knows nothing of bounds and grammars.
"""

from collections.abc import Mapping
from typing import Any

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_SINGLE = frozenset({"items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains"})
_ANY_NAME: tuple[object, ...] = (True, {}, {"type": "string"})
"""What all names of properties are."""


def without_vacuous(schema: Any) -> Any:
    """The schema, which is not nested without bounds, with the same meaning."""
    if not isinstance(schema, Mapping):
        return schema
    return {key: _within(key, value) for key, value in schema.items() if not _is_vacuous(key, value)}


def _within(key: str, value: Any) -> Any:
    if key in _MAPS and isinstance(value, Mapping):
        return {name: without_vacuous(each) for name, each in value.items()}
    if key in _LISTS and isinstance(value, list):
        return [without_vacuous(each) for each in value]
    return without_vacuous(value) if key in _SINGLE else value


def _is_vacuous(key: str, value: Any) -> bool:
    if key == "uniqueItems":
        return value is False
    return key == "propertyNames" and isinstance(value, bool | Mapping) and value in _ANY_NAME
