"""Turning pydantic's complaints into one 400 that names the field and the fix, and repeats no input.

Knows pydantic's error types; knows no routes.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from server.errors import BadRequest
from server.strict import UNKNOWN

_PLACES = frozenset({"body", "path", "query", "header"})


def bad_request(errors: Sequence[Mapping[str, Any]]) -> BadRequest:
    """One refusal for all of `errors`; `param` is the first one's field."""
    faults: dict[str, Mapping[str, Any]] = {}
    for error in errors:
        faults.setdefault(_field(_place(error)), error)
    told = [(field, _says(error)) for field, error in list(faults.items())[:8]]
    message = " ".join(f"`{field}`: {text}" if field else text for field, text in told)
    return BadRequest(message, next(iter(faults)) or None, "validation_error")


def _place(error: Mapping[str, Any]) -> Sequence[str | int]:
    loc: Sequence[str | int] = error["loc"]
    return (*loc, error["ctx"]["field"]) if error["type"] == UNKNOWN else loc


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
    if kind == UNKNOWN:
        near = get_close_matches(_word(error["ctx"]["field"]), error["ctx"]["known"], n=1)
        return f"this field is not known here; {f'did you mean `{near[0]}`?' if near else 'leave it out.'}"
    if kind == "extra_forbidden":
        return "this field is not known here; leave it out."
    if kind == "missing":
        return "this field is required." if len(error["loc"]) > 1 else "the body is empty; send a JSON object."
    if kind in ("model_attributes_type", "model_type", "dict_type") and len(error["loc"]) <= 1:
        return "the body must be a JSON object."
    text: str = error["msg"]
    text = text.removeprefix("Value error, ").rstrip(".")
    return f"{text[:1].lower()}{text[1:]}."
