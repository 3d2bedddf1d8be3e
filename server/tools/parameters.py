"""A function's parameters one by one, for a markup that writes each in an element of its own.

Owns which of them are text and which are JSON there, and what cannot be written so. Knows neither grammars nor answers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.grammars.faults import KEYWORDS
from server.tools.markup import Function

CLOSE = "</parameter>"
"""No text has it."""
MAX_CHOICES_LENGTH = 4096
"""Of a text's choices together. More of them are JSON, whose size is bounded elsewhere."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string without quotes: one of `choices`, if there are any, or of so many characters.

    If `nullable`, `null` is not a string but null.
    """

    choices: tuple[str, ...] = ()
    min_length: int = 0
    max_length: int | None = None
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """`text` is None for one that is JSON, which keeps to `schema`."""

    name: str
    required: bool
    schema: Mapping[str, Any]
    text: Text | None


class Unwritable(ValueError):
    """The text says what of a schema this markup has no form for."""


def parameters(function: Function) -> tuple[Parameter, ...]:
    """In their order. Of a function that is not strict, only `properties` and `required` are kept to.

    Raises Unwritable.
    """
    root = function.schema
    whole = _followed({key: value for key, value in root.items() if key != "type"}, root)
    named, required = whole.get("properties", {}), whole.get("required", [])
    if not isinstance(named, Mapping) or not isinstance(required, list):
        raise Unwritable("the value of `properties` or `required` is of a wrong type")
    unkept = sorted(key for key, value in whole.items() if not _is_kept(key, value))
    if unkept and (function.strict or not named):
        what = f"`{unkept[0]}`" if unkept[0] in KEYWORDS else "a keyword"
        raise Unwritable(f"{what} is not supported beside `properties` with this base's calls, or alone")
    schemas = dict(named) | {name: True for name in required if isinstance(name, str) and name not in named}
    return tuple(
        _parameter(name, name in required, schema, root)
        for name, schema in schemas.items()
        if schema is not False or name in required
    )


def _is_kept(key: str, value: Any) -> bool:
    return key in _KEPT or (key, value) in (("type", "object"), ("additionalProperties", False))


_DEFINITIONS = frozenset({"$defs", "definitions"})
_NOTES = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema"}
)
"""Keywords that restrict nothing."""
_LIBRARY_KEYWORDS = frozenset({"x-guidance"})
_KEPT = _NOTES | _DEFINITIONS | _LIBRARY_KEYWORDS | {"properties", "required"}
_MAX_STEPS = 8
"""From reference to reference, which may go round."""


def _parameter(name: str, required: bool, schema: Any, root: Mapping[str, Any]) -> Parameter:
    if not name.strip() or any(mark in name for mark in "<>\n"):
        raise Unwritable("a parameter's name is empty or has `<`, `>` or a line break")
    if not isinstance(schema, Mapping):
        if schema is not True:
            raise Unwritable("a parameter's schema is neither an object nor `true` or `false`")
        schema = {}
    return Parameter(name, required, _by_itself(schema, root), _text(schema, root))


def _by_itself(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the definitions that it may refer to, and what the whole schema asks of the grammar library."""
    beside = _DEFINITIONS | _LIBRARY_KEYWORDS if '"$ref"' in json.dumps(schema) else _LIBRARY_KEYWORDS
    return {**schema, **{key: root[key] for key in beside if key in root}}


def _text(schema: Mapping[str, Any], root: Mapping[str, Any], steps: int = _MAX_STEPS) -> Text | None:
    """The strings that a schema allows, if it allows no other values but null and says it in simple words."""
    schema = _followed(schema, root)
    said = {key: value for key, value in schema.items() if key not in _NOTES}
    for several in ("anyOf", "oneOf"):
        if said.keys() == {several} and isinstance(said[several], list):
            return _text_or_null(said[several], root, steps - 1) if steps else None
    types = said.pop("type", None)
    if types is not None and types != "string" and types not in (["string", "null"], ["null", "string"]):
        return None
    nullable = isinstance(types, list)
    if said.keys() in ({"enum"}, {"const"}):
        values = said.get("enum", [said.get("const")])
        return _choices(values, nullable or types is None) if isinstance(values, list) else None
    return None if types is None else _of_length(said, nullable)


def _text_or_null(branches: Sequence[Any], root: Mapping[str, Any], steps: int) -> Text | None:
    others = [each for each in branches if not (isinstance(each, Mapping) and each.get("type") == "null")]
    if len(others) != 1 or not isinstance(others[0], Mapping):
        return None
    found = _text(others[0], root, steps)
    return replace(found, nullable=True) if found is not None and len(branches) > 1 else found


def _choices(values: Sequence[Any], or_null: bool) -> Text | None:
    strings = tuple(value for value in values if isinstance(value, str))
    others = [value for value in values if not isinstance(value, str)]
    if not strings or any(value is not None for value in others) or sum(map(len, strings)) > MAX_CHOICES_LENGTH:
        return None
    if any(CLOSE in string or string.endswith("\n") for string in strings):
        return None
    return Text(strings, nullable=or_null and bool(others))


def _of_length(said: Mapping[str, Any], nullable: bool) -> Text | None:
    least, most = said.get("minLength", 0), said.get("maxLength")
    if said.keys() - {"minLength", "maxLength"} or type(least) is not int or type(most) not in (int, type(None)):
        return None
    return Text((), least, most, nullable) if 0 <= least <= (least if most is None else most) else None


def _followed(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a schema that only refers to another one refers to."""
    for _ in range(_MAX_STEPS):
        pointer, place = schema.get("$ref"), root
        if not isinstance(pointer, str) or schema.keys() - _NOTES - _DEFINITIONS != {"$ref"}:
            return schema
        for part in pointer.removeprefix("#/").split("/"):
            found = place.get(part.replace("~1", "/").replace("~0", "~"))
            if not isinstance(found, Mapping):
                return schema
            place = found
        schema = place
    return schema
