"""Keywords of JSON Schema that ask for nothing, as generators of schemas write them, and that the grammar library does
not know: taken out, since nothing is lost.

Knows nothing of bounds and grammars.
"""

from collections.abc import Mapping
from typing import Any

from server.grammars.subschemas import everywhere

_ANY_NAME: tuple[object, ...] = (True, {}, {"type": "string"})
"""What all names of properties are."""


def without_vacuous(schema: Any) -> Any:
    """The schema, which is not nested without bounds, with the same meaning."""
    return everywhere(schema, _asking)


def _asking(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in schema.items() if not _is_vacuous(key, value)}


def _is_vacuous(key: str, value: Any) -> bool:
    if key == "uniqueItems":
        return value is False
    return key == "propertyNames" and isinstance(value, bool | Mapping) and value in _ANY_NAME
