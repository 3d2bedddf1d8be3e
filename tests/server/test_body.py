"""E55: the event loop goes on while hostile bodies are parsed.

The parser is C and holds the interpreter; so what it is given is bounded, by counting. The counts are asserted, since
times depend on the machine.
"""

import json
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.body import MAX_BRACKETS, MAX_KEYS, MAX_VALUES, _outside_strings, check_counts, parse_json
from server.errors import BadRequest
from tests.support.server_rig import BASE, make_rig

SIZE = (4 << 20) - 200
HEAD = f'{{"model":"{BASE}",'.encode()


def filled(begin: bytes, item: bytes, end: bytes) -> bytes:
    """A body of almost the largest size: `item` again and again."""
    return HEAD + begin + b",".join([item] * (SIZE // (len(item) + 1) - len(begin))) + end


HOSTILE = {
    "ids": ("completions", filled(b'"prompt":[', b"1", b"]}")),
    "numbers": ("completions", filled(b'"prompt":[', b"1e5", b"]}")),
    "strings": ("completions", filled(b'"prompt":[', b'"\\n"', b"]}")),
    "lists of ids": ("completions", filled(b'"prompt":[', b"[1]", b"]}")),
    "lists": ("completions", filled(b'"prompt":[', b"[]", b"]}")),
    "empty strings": ("completions", filled(b'"prompt":[', b'""', b"]}")),
    "unknown fields": ("completions", HEAD + b",".join(b'"u%d":1' % number for number in range(300_000)) + b"}"),
    "messages": ("chat/completions", filled(b'"messages":[', b'{"role":"user","content":"x"}', b"]}")),
    "parts": (
        "chat/completions",
        filled(b'"messages":[{"role":"user","content":[', b'{"type":"text","text":"x"}', b"]}]}"),
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", HOSTILE)
async def test_e55_the_loop_goes_on_under_hostile_json(name: str, tmp_path: Path) -> None:
    """None of them reaches the parser."""
    path, content = HOSTILE[name]
    with pytest.raises(BadRequest, match="values"):
        check_counts(content.decode())
    rig = make_rig(tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(rig.app), base_url="http://test") as client:
        reply = await client.post(f"/v1/{path}", content=content, headers={"content-type": "application/json"})
    rig.registry.close()
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "json_invalid", reply.text
    assert str(MAX_VALUES) in reply.json()["error"]["message"]


TEXTS = {
    "token ids": json.dumps({"prompt": [49_151] * 131_072, "max_tokens": 16, "logit_bias": {"5": 1}}),
    "a table": json.dumps({"prompt": "1,2,3:4\n" * 500_000}),
    "code": json.dumps({"prompt": "{[" * 500_000}),
    "code that holds strings": json.dumps({"prompt": '{"key": ["\\\\", "a"],}' * 100_000}),
    "escaped characters": json.dumps({"prompt": "\u6f22\u5b57" * 200_000}),
    "many short messages": json.dumps({"messages": [{"role": "user", "content": "x"}] * 10_000}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_long_prompts_are_read(name: str) -> None:
    text = TEXTS[name]
    assert parse_json(text.encode()) == json.loads(text)


strings = st.text(st.sampled_from('a,:[]{}"\\\n\u00e9'), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=30,
)


@given(values, st.booleans())
def test_what_stands_outside_of_strings_is_counted_and_nothing_else(value: object, ascii: bool) -> None:
    outside = _outside_strings(json.dumps(value, ensure_ascii=ascii))
    assert outside is not None
    keys, brackets, commas = counted(value)
    assert outside.count(":") == keys
    assert outside.count("[") + outside.count("{") == brackets
    assert outside.count(",") == commas


def counted(value: object) -> tuple[int, int, int]:
    """Keys, brackets and commas of a value."""
    if not isinstance(value, list | dict):
        return 0, 0, 0
    inner = [counted(one) for one in (value.values() if isinstance(value, dict) else value)]
    keys, brackets, commas = (sum(column) for column in zip(*inner, strict=True)) if inner else (0, 0, 0)
    return keys + (len(value) if isinstance(value, dict) else 0), brackets + 1, commas + max(0, len(value) - 1)


@pytest.mark.parametrize("text", ['{"a": 1} "b": ["', '"', '\\\\"', "", '["a\\', '{"a\\\\": [1, 2]}'])
def test_broken_texts_are_no_way_around_it(text: str) -> None:
    """What the parser takes before it stops is counted in any case."""
    hostile = "[" + "1," * (MAX_VALUES + 1) + text
    with pytest.raises(BadRequest, match="values"):
        parse_json(hostile.encode())


def test_the_bounds_are_sharp() -> None:
    for text in ("[" + "1," * MAX_VALUES, '{"a":' * MAX_KEYS, "[" * MAX_BRACKETS):
        check_counts(text)
    for text in ("[" + "1," * (MAX_VALUES + 1), '{"a":' * (MAX_KEYS + 1), "[" * (MAX_BRACKETS + 1)):
        with pytest.raises(BadRequest):
            check_counts(text)
