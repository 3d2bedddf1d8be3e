"""What must not stand in a log, whoever writes it: keys, and what users sent or were answered.

Owns the last processor before a line is rendered. Fields are known by their names; inside text, keys are known by
their shape and prompts by the name before them. It cannot know a prompt that stands in a sentence: nothing of ours
writes one there.
"""

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

HIDDEN = "[redacted]"

NAMES_OF_KEYS = "authorization|api[-_]?key|password|pepper|secret|access[-_]?token|cookie"
NAMES_OF_TEXTS = "prompts?|messages|content|completion|body|input|input_value|suffix|stop|token_ids|tokens|text"

_KEY_NAME = re.compile(f"(?:{NAMES_OF_KEYS})s?", re.IGNORECASE)
_TEXT_NAME = re.compile(f"(?:{NAMES_OF_TEXTS})", re.IGNORECASE)
_KEY = re.compile(r"\bsk-[A-Za-z0-9_.~+/=-]{6,}")
_CREDENTIALS = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9_.~+/=-]{6,}", re.IGNORECASE)
_VALUE = r"""(?:b?"(?:[^"\\]|\\.)*"|b?'(?:[^'\\]|\\.)*'|[\[({].*)"""  # a bracket's end may be quoted: to the line's
_NAMED = re.compile(rf"""(?<![\w.])(["']?)({NAMES_OF_KEYS}|{NAMES_OF_TEXTS})\1(\s*[:=]\s*){_VALUE}""", re.IGNORECASE)
_DEPTH = 6


def redact(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: `event` without what `HIDDEN` stands for."""
    for name, value in event.items():
        event[name] = _value(name, value, _DEPTH)
    return event


def redact_text(text: str) -> str:
    """`text` without keys, and without the values that names of private fields stand before."""
    text = _KEY.sub(HIDDEN, text)
    text = _CREDENTIALS.sub(rf"\1 {HIDDEN}", text)
    return _NAMED.sub(rf"\1\2\1\3{HIDDEN}", text)


def _value(name: str, value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if _KEY_NAME.fullmatch(name) or (_TEXT_NAME.fullmatch(name) and not isinstance(value, int | float)):
        return HIDDEN
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if depth == 0:
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: _value(str(key), inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_value("", inner, depth - 1) for inner in value]
    return redact_text(str(value))
