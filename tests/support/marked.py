"""Bodies whose every text is one that no error may repeat (I7): good ones, until a test spoils a field.

Knows JSON and the fields' names, and no server.
"""

import json

from tests.support.face import BASE
from tests.support.invariants import MARK

MARKED = {
    "model": f'"{BASE}"',
    "prompt": f'"{MARK}"',
    "stop": f'["{MARK}"]',
    "user": f'"{MARK}"',
    "metadata": f'{{"team": "{MARK}"}}',
    "max_tokens": "2",
}


def written(**literals: str) -> str:
    """A good body, but for fields that are given as JSON, whatever they are. Its texts are such as no error repeats."""
    return "{" + ", ".join(f'"{field}": {literal}' for field, literal in (MARKED | literals).items()) + "}"


def body(**fields: object) -> str:
    return written(**{field: json.dumps(value) for field, value in fields.items()})


def raw(field: str, literal: str) -> str:
    return written(**{field: literal})


def prompt(literal: str) -> str:
    return written(prompt=literal)


def turns(literal: str) -> str:
    """A chat with these messages."""
    kept = {field: value for field, value in MARKED.items() if field != "prompt"}
    return "{" + ", ".join(f'"{field}": {value}' for field, value in (kept | {"messages": literal}).items()) + "}"
