"""Answers that keep to a form, written byte by byte without a model, and the forms they keep to."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from engine.constraint import Constraint
from server.tools.markup import Function
from server.tools.parameters import Parameter, parameters
from tests.support.tokenizer import END

COMPACT: dict[str, Any] = {"x-guidance": {"whitespace_flexible": False}}
"""Beside a schema's own keys: no space between its parts."""


def allowed_bytes(constraint: Constraint) -> set[int]:
    """What may come next; END among them where the answer may end."""
    bits = int.from_bytes(constraint.allowed(), "little")
    return {token for token in range(END + 1) if bits >> token & 1}


def written(constraint: Constraint, seed: int, longest: int = 400) -> bytes | None:
    """One answer, its bytes drawn at random; None if it does not end within `longest` bytes."""
    draw, answer = random.Random(seed), bytearray()
    while not constraint.complete:
        token = draw.choice(sorted(allowed_bytes(constraint)))
        if token == END:
            break
        if len(answer) == longest:
            return None
        answer.append(token)
        constraint.accept(token)
    return bytes(answer)


def in_elements(functions: Sequence[Function]) -> Mapping[str, Sequence[Parameter]]:
    """What a form of calls holds for a markup that writes arguments as elements."""
    return {function.name: parameters(function) for function in functions}


def follow(constraint: Constraint, text: bytes) -> None:
    for byte in text:
        assert byte in allowed_bytes(constraint)
        constraint.accept(byte)


def random_schema(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    """A small schema whose values are all short, so that any way to answer it ends soon."""
    kinds = ["string", "integer", "boolean", "null", "enum", "const", "pattern"]
    kind = draw.choice(kinds + ["object", "array", "anyOf", "object"] * (depth > 0))
    if kind == "object":
        names = draw.sample(["a", "b", "name", "größe", 'quo"te', "x y"], draw.randint(0, 3))
        properties = {name: random_schema(draw, depth - 1) for name in names}
        required = [name for name in names if draw.random() < 0.7]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        least = draw.randint(0, 2)
        return {"type": "array", "items": random_schema(draw, depth - 1), "minItems": least, "maxItems": least + 1}
    if kind == "anyOf":
        return {"anyOf": [random_schema(draw, depth - 1) for _ in range(2)]}
    plain: dict[str, dict[str, Any]] = {
        "string": {"type": "string", "maxLength": draw.randint(0, 4)},
        "integer": {"type": "integer", "minimum": -draw.randint(0, 50), "maximum": draw.randint(0, 200)},
        "enum": {"enum": draw.sample(["red", 1, None, "grün", True, [1], {"k": "v"}], 3)},
        "const": {"const": draw.choice(["only", 7, [1, "two"]])},
        "pattern": {"type": "string", "pattern": draw.choice(["^[a-f]{1,3}$", "^\\d{2}-\\d{2}$", "^(yes|no)$"])},
    }
    return plain.get(kind) or {"type": kind}


def keeps_to(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is what `random_schema` asks for, by the book."""
    import jsonschema_rs

    return bool(jsonschema_rs.is_valid(schema, value))


def parsed(text: str | bytes) -> Any:
    """Strictly: no repeated keys, no NaN."""

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique)
