"""JSON from strangers: no duplicate keys, no NaN, no BOM, no deep nesting, no numbers beyond a double.

Owns the parsing of untrusted JSON text (RFC 8259, with the choices that it leaves open made strictly).
Knows nothing of what the JSON means.
"""

import json
import math

from adapters.errors import quoted

MAX_DEPTH = 16

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class StrictJSONError(ValueError):
    """The text is not JSON, or JSON that readers could understand differently. The message says which and where."""


def parse(raw: bytes, limit: int) -> Json:
    """The value that `raw` holds; at most `limit` bytes. Raises StrictJSONError, whatever the bytes are."""
    if len(raw) > limit:
        raise StrictJSONError(f"it is {len(raw)} bytes, expected at most {limit}")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise StrictJSONError("it begins with a byte order mark, expected plain UTF-8")
    _check_depth(raw)
    try:
        value: Json = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        raise StrictJSONError(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise StrictJSONError(f"line {error.lineno} column {error.colno}: {error.msg}") from None
    return value


def _check_depth(raw: bytes) -> None:
    """Brackets inside strings count too. That refuses nothing real, and nothing recursive runs before this check."""
    depth = 0
    for byte in raw.translate(None, delete=_NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            raise StrictJSONError(f"it is nested deeper than {MAX_DEPTH} levels")


_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for key, value in pairs:
        if key in found:
            raise StrictJSONError(f"the key {quoted(key)} occurs twice")
        found[key] = value
    return found


def _no_constant(text: str) -> float:
    raise StrictJSONError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise StrictJSONError(f"the number {quoted(text, 40)} is out of range")
    return number


def _integer(text: str) -> int:
    # Nothing here needs more than 64 bits, and the interpreter's own limit on digits raises a different error.
    if len(text) > 20:
        raise StrictJSONError(f"the number {quoted(text, 40)} is out of range")
    return int(text)
