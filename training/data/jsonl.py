"""Reads a JSONL file into objects with their line numbers, or the fault of every bad line.

Owns bytes, lines and JSON. Knows no format of examples. JSON is read strictly: a duplicate key or NaN is a fault, since
readers disagree on what they mean.
"""

import codecs
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Line:
    """One object of a file; `number` counts from 1."""

    number: int
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lines:
    """A file's objects, the digest of its bytes, and what is wrong with it, each with file and line."""

    path: Path
    sha256: str
    lines: tuple[Line, ...]
    faults: tuple[str, ...] = field(default=())


class _BadLine(ValueError):
    """A line that is refused; the text says why and what to do."""


def read(path: Path) -> Lines:
    """The objects in `path`. Raises nothing: a missing file or bad lines are in the result's `faults`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        fault = f"{path}: it cannot be read: {error.strerror}. Give the path of a JSONL file."
        return Lines(path, "", (), (fault,))
    return parse(raw, path)


def parse(raw: bytes, path: Path) -> Lines:
    """As `read`, for the bytes of a file called `path`."""
    digest = hashlib.sha256(raw).hexdigest()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Lines(path, digest, (), (f"{path}:1: it is UTF-16. Save it as UTF-8.",))
    lines: list[Line] = []
    faults: list[str] = []
    for number, text in _nonblank_lines(raw):
        try:
            lines.append(Line(number, _object(text)))
        except _BadLine as error:
            faults.append(f"{path}:{number}: {error}")
    if not lines and not faults:
        faults.append(f"{path}: it has no examples. Each line should hold one JSON object.")
    return Lines(path, digest, tuple(lines), tuple(faults))


def _nonblank_lines(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number; a UTF-8 byte order mark is dropped."""
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if stripped := line.strip():
            yield number, stripped


def _object(text: bytes) -> Mapping[str, Any]:
    try:
        value = _DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _BadLine(f"byte {error.start + 1} of the line is not UTF-8. Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise _BadLine(f"not JSON: {error.msg} at column {error.colno}. {_remedy(text)}") from None
    except RecursionError:
        raise _BadLine("not read: it is nested too deeply. Examples are flat objects.") from None
    except ValueError as error:
        raise error if isinstance(error, _BadLine) else _BadLine(f"not read: {error}.") from None
    if not isinstance(value, dict):
        raise _BadLine(f"a JSON {_JSON_TYPES[type(value)]} where an object was expected. Write one object on each line.")
    if b"\\u" in text and _has_lone_surrogate(value):
        raise _BadLine(r"it holds half of a surrogate pair, such as \ud83d alone. Write the whole character.")
    return value


def _has_lone_surrogate(value: Any) -> bool:
    r"""Whether a string holds an unpaired surrogate, such as \ud83d: valid JSON, but no text that can be tokenized."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _remedy(text: bytes) -> str:
    if text.startswith(b"["):
        return (
            "A JSON array over several lines? Write one object on each line, without the array's brackets and commas."
        )
    return "Write one whole object on each line."


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise _BadLine(f"the key {twice!r} occurs twice. Keep one.")
    return found


def _refuse_constant(text: str) -> float:
    raise _BadLine(f"{text} is not JSON. Write a number or null.")


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
_JSON_TYPES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
