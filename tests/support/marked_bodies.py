"""Bodies whose every text is one that no error may repeat (I7): good ones, until a test spoils a field.

Owns such bodies, and what each must be answered. Knows JSON and the fields' names, and no server.
"""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.invariants import MARK
from tests.support.server_rig import BASE

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
VALUE, SYNTAX = "validation_error", "json_invalid"

Odd = tuple[Any, str | None, str]
"""A body, the field that is to blame if one is, and the code."""

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


def as_chat(content: str) -> str:
    """A body of ours with its prompt in a turn of the user's."""
    return content.replace(f'"prompt": "{MARK}"', f'"messages": [{{"role": "user", "content": "{MARK}"}}]', 1)


def turns(literal: str) -> str:
    """A chat with these messages."""
    kept = {field: value for field, value in MARKED.items() if field != "prompt"}
    return "{" + ", ".join(f'"{field}": {value}' for field, value in (kept | {"messages": literal}).items()) + "}"


def values(field: str, *literals: str, param: str = "", code: str = VALUE) -> dict[str, Odd]:
    """Bodies with this field given as JSON, whatever it is."""
    made: dict[str, Odd] = {
        f"{field} {literal[:40]}": (raw(field, literal), param or field, code) for literal in literals
    }
    assert len(made) == len(literals), "two of them begin alike"
    return made


def each(group: Mapping[str, Odd]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("content", "param", "code"), group.values(), ids=group.keys())


def to_both(group: Mapping[str, Odd]) -> pytest.MarkDecorator:
    """Each body as it is to one route and, with its prompt in a turn, to the other."""
    sent = {f"{name}, completions": (COMPLETIONS, *odd) for name, odd in group.items()}
    sent |= {f"{name}, chat": (CHAT, as_chat(odd[0]), *odd[1:]) for name, odd in group.items()}
    return pytest.mark.parametrize(("path", "content", "param", "code"), sent.values(), ids=sent.keys())
