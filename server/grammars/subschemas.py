"""Where a JSON Schema has schemas within it.

Knows nothing of what is done to them.
"""

from collections.abc import Callable, Mapping
from typing import Any

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_SINGLE = frozenset({"items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains"})


def everywhere(schema: Any, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Any:
    """The schema, which is not nested without bounds, changed, and then each schema within it."""
    if not isinstance(schema, Mapping):
        return schema
    return {key: _within(key, value, change) for key, value in change(schema).items()}


def _within(key: str, value: Any, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Any:
    if key in _MAPS and isinstance(value, Mapping):
        return {name: everywhere(each, change) for name, each in value.items()}
    if key in _LISTS and isinstance(value, list):
        return [everywhere(each, change) for each in value]
    return everywhere(value, change) if key in _SINGLE else value
