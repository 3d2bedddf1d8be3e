"""Schemas of which only as much is kept to as the grammar library can, for those who do not insist on the rest.

Owns what is left out here, because the library's own leniency does not extend to it. Every change lets more be valid,
and nothing less. Knows nothing of bounds and grammars.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from server.grammars.subschemas import everywhere


class Malformed(ValueError):
    """The text says which keyword's value is none, in words of JSON Schema alone."""


def lenient(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema, which is not nested without bounds, with the library's leniency unless it says otherwise itself.

    Raises Malformed.
    """
    kept: Mapping[str, Any] = everywhere(schema, _served)
    guidance = kept.get("x-guidance")
    return {**kept, "x-guidance": {"lenient": True} | dict(guidance)} if isinstance(guidance, Mapping) else kept


def _served(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    for key, types in _TYPES.items():
        if key in schema and not isinstance(schema[key], types):
            raise Malformed(f"the value of `{key}` is of a wrong type")
    left_out = {*_unread_patterns(schema), *_uncounted(schema)}
    return {key: value for key, value in schema.items() if key not in left_out}


_SCHEMA, _NUMBER = (Mapping, bool), (int, float)
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("not", "if", "then", "else", "contains", "propertyNames"), _SCHEMA),
    **dict.fromkeys(("additionalProperties", "unevaluatedProperties", "unevaluatedItems"), _SCHEMA),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies"), (Mapping,)),
    **dict.fromkeys(("minContains", "maxContains", "minProperties", "maxProperties"), _NUMBER),
    "uniqueItems": (bool,),
}
"""Of what may be left out, here or by the library, which does not look at it then."""


def _unread_patterns(schema: Mapping[str, Any]) -> Collection[str]:
    """The keywords whose regular expressions the library does not follow.

    With the patterns of names goes what is said of other properties: these would be the very ones that they name.
    """
    pattern, names = schema.get("pattern"), schema.get("patternProperties")
    unread = {"pattern"} if isinstance(pattern, str) and _looks_around(pattern) else set()
    if isinstance(names, Mapping) and (len(names) > 1 or any(map(_looks_around, names))):
        unread |= {"patternProperties", "additionalProperties"}
    return unread


def _uncounted(schema: Mapping[str, Any]) -> Collection[str]:
    """Where properties may be absent, the library's leniency would count the others alone."""
    named, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, Mapping) or not isinstance(required, list):
        return ()
    needed = {each for each in required if isinstance(each, str)}
    return ("minProperties", "maxProperties") if named.keys() - needed else ()


_PART = re.compile(r"\\.|\(\?<?[=!]|[\[\]]", re.DOTALL)
_AROUND = re.compile(r"\\[bBk1-9]|\(")


def _looks_around(pattern: str) -> bool:
    """Whether a regular expression looks around itself: ahead, behind, at words' ends, or at what a group matched."""
    within = False
    for part in _PART.findall(pattern):
        if part in "[]":
            within = part == "["
        elif not within and _AROUND.match(part):
            return True
    return False
