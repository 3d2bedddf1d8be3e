"""Turning pydantic's complaints into one 400 that names the field and the fix, and repeats no input.

Knows pydantic's error types; knows no routes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import BadRequest

_PLACES = frozenset({"body", "path", "query", "header"})


def bad_request(errors: Sequence[Mapping[str, Any]]) -> BadRequest:
    """One refusal for all of `errors`; `param` is the first one's field."""
    faults: dict[str, str] = {}
    for error in errors:
        faults.setdefault(_field(error["loc"]), _says(error))
    message = " ".join(f"`{field}`: {text}." if field else f"{text}." for field, text in list(faults.items())[:8])
    return BadRequest(message, next(iter(faults)) or None, "validation_error")


def _field(loc: Sequence[str | int]) -> str:
    """`messages[2].content` for ("body", "messages", 2, "content")."""
    path = ""
    for part in loc[1:] if loc and loc[0] in _PLACES else loc:
        path += f"[{part}]" if isinstance(part, int) else f".{_word(part)}"
    return path.lstrip(".")


def _word(part: str) -> str:
    """A field name short and plain enough to repeat."""
    clean = "".join(letter for letter in part if letter.isascii() and (letter.isalnum() or letter in "_-"))
    return clean[:64] or "?"


def _says(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return "this field is not known here; leave it out"
    if kind == "missing":
        return "this field is required" if len(error["loc"]) > 1 else "the body is empty; send a JSON object"
    if kind in ("model_attributes_type", "model_type", "dict_type") and len(error["loc"]) <= 1:
        return "the body must be a JSON object"
    text: str = error["msg"]
    text = text.removeprefix("Value error, ").rstrip(".")
    return text[:1].lower() + text[1:]
