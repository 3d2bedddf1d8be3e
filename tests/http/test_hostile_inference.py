"""Requests that other servers answer with 500, or worse, with 200: cases E46 to E60, a group a case.

After every one of them the invariants of tests/support/manners.py hold. E46 is in test_adapters.py, exact stops (E52)
also in test_openai_client.py and tests/engine/test_detokenize.py, roles that cannot be spoken for (E59) in
tests/server/test_tokens.py.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tests.support.face import BASE, Face
from tests.support.invariants import MARK
from tests.support.manners import check_after, check_reply, refused
from tests.support.marked import body, prompt, raw, turns
from tests.support.processor import least_time

JSON = {"content-type": "application/json"}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def each(group: Mapping[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("content", group.values(), ids=group.keys())


def post(http: httpx.Client, content: str | bytes, path: str = COMPLETIONS) -> httpx.Response:
    return http.post(path, content=content, headers=JSON)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_e47_beyond_the_context_is_told_with_the_numbers(path: str, http: httpx.Client, face: Face) -> None:
    text = MARK * 500
    long = {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
    for fields in (long | {"max_tokens": 1}, long | {"max_tokens": 10_000_000}):
        reply = http.post(path, json={"model": BASE, **fields})
        refused(reply, http, face, code="context_length_exceeded")
        message, limit = reply.json()["error"]["message"], str(face.services.limits.max_model_len)
        assert limit in message and str(fields["max_tokens"]) in message


E48 = {
    "n huge": raw("n", "1000000000"),
    "n bool": raw("n", "true"),
    "n string": raw("n", '"2"'),
    "n float": raw("n", "2.0"),
    "n zero": raw("n", "0"),
    "n times prompts": body(n=128, prompt=[MARK] * 3),
    "best_of": raw("best_of", "5"),
    "logprobs huge": raw("logprobs", "1000000"),
}


@each(E48)
def test_e48_counts_are_bounded_before_anything_is_made(content: str, http: httpx.Client, face: Face) -> None:
    seen = len(face.worker.seen)
    assert least_time(lambda: post(http, content)) < 0.05, "the client's part included"
    assert len(face.worker.seen) == seen
    refused(post(http, content), http, face)


E49 = {literal: raw("max_tokens", literal) for literal in ("-1", "0", "1e308", "true", '"5"', "1.0", "[]")}


@each(E49)
def test_e49_odd_lengths(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face)


E50 = {
    f"{field} {literal}": raw(field, literal)
    for field in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p")
    for literal in ("NaN", "Infinity", "-Infinity", "-3", "1e400", '"1"', "true")
}


@each(E50)
def test_e50_numbers_that_are_none_or_out_of_bounds(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face)


E51 = {
    "NaN": raw("logit_bias", '{"1": NaN}'),
    "minus one": raw("logit_bias", '{"-1": 5}'),
    "at vocabulary": raw("logit_bias", '{"258": 5}'),
    "not a number": raw("logit_bias", '{"a": 5}'),
    "other digits": raw("logit_bias", '{"\u0661": 5}'),
    "beyond 100": raw("logit_bias", '{"1": 101}'),
    "too many": body(logit_bias={str(token): 1 for token in range(100_000)}),
    "stop id at vocabulary": raw("stop_token_ids", "[258]"),
}


@each(E51)
def test_e51_biases_of_tokens_that_are_not_there(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face)


def test_e51_a_million_biases_are_more_than_a_body_may_have(http: httpx.Client, face: Face) -> None:
    many = body(logit_bias={str(token): 1 for token in range(1_000_000)})
    refused(post(http, many), http, face, status=413, code="body_too_large")


E52 = {
    "empty": raw("stop", '""'),
    "one empty": body(stop=[MARK, ""]),
    "a number": raw("stop", f'["{MARK}", 1]'),
    "long": body(stop=MARK * 25),
    "too many": body(stop=[MARK] * 10_000),
}


@each(E52)
def test_e52_stops_that_cannot_be(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face)


E53 = {
    "surrogate": raw("stop", f'"{MARK}\\ud800"'),
    "surrogate in the prompt": prompt(f'"{MARK}\\ud800"'),
    "surrogate in a key": raw("\\udfff", "1"),
    "NUL": raw("stop", f'"{MARK}\\u0000"'),
    "NUL in the prompt": prompt(f'"{MARK}\\u0000b"'),
    "NUL in one of the prompts": prompt(f'["{MARK}", "\\u0000"]'),
    "NUL in a key": raw("\\u0000", "1"),
    "NUL in a field's key": raw("logit_bias", '{"1\\u0000": 1}'),
    "NUL in metadata": raw("metadata", f'{{"a": "{MARK}\\u0000"}}'),
    "NUL in the user": raw("user", f'"{MARK}\\u0000"'),
    "NUL in the adapter": raw("adapter_id", f'"{MARK}\\u0000"'),
    "NUL in the model": raw("model", f'"{MARK}\\u0000"'),
    "NUL as it is": prompt(f'"{MARK}\0b"'),
    "NUL before": "\0" + body(),
    "NUL behind": body() + "\0",
    "seed of 20 digits": raw("seed", "9" * 20),
    "seed of 4000 digits": raw("seed", "9" * 4000),
    "seed of 5000 digits": raw("seed", "9" * 5000),
}


@each(E53)
def test_e53_no_text_and_no_number(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face)


E53_TURNS = {
    "content": f'{{"role": "user", "content": "{MARK}\\u0000"}}',
    "a part": f'{{"role": "user", "content": [{{"type": "text", "text": "{MARK}\\u0000"}}]}}',
    "role": f'{{"role": "{MARK}\\u0000", "content": "{MARK}"}}',
    "name": f'{{"role": "user", "content": "{MARK}", "name": "{MARK}\\u0000"}}',
}


@each(E53_TURNS)
def test_e53_no_text_in_a_turn(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, turns(f"[{content}]"), CHAT), http, face)


@pytest.mark.parametrize("path", ["models/a%00b", "adapters/a%00b", "adapters/a%00b/versions", "adapters/x@%00"])
def test_e53_no_text_in_a_path(path: str, http: httpx.Client, face: Face) -> None:
    reply = http.get(f"/v1/{path}")
    assert reply.status_code in (400, 404), reply.text
    check_reply(reply, "a\0b")
    check_after(http, face)


def test_e53_what_only_looks_like_a_surrogate(http: httpx.Client) -> None:
    assert post(http, raw("stop", '"\\\\ud800"')).status_code == 200, "an escaped backslash"
    assert post(http, raw("stop", '"\\ud83d\\ude00"')).status_code == 200, "a pair is one character"


E54 = {
    "invalid UTF-8": body().replace(MARK, MARK + "\xff", 1).encode("latin-1"),
    "UTF-16": body().encode("utf-16"),
    "UTF-32": body().encode("utf-32"),
    "byte order mark": b"\xef\xbb\xbf" + body().encode(),
    "overlong": body().replace(MARK, MARK + "\xc0\x80", 1).encode("latin-1"),
}


@each(E54)
def test_e54_other_encodings(content: bytes, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face, code="json_invalid")


DEEP = {
    "deep": "[" * 100_000 + f'"{MARK}"' + "]" * 100_000,
    "deep objects": f'{{"{MARK}":' * 100_000,
    "deep in a field": raw("metadata", "[" * 900 + f'"{MARK}"' + "]" * 900),
}


@each(DEEP)
def test_e55_deep_nesting(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face)


def test_e55_many_messages(http: httpx.Client, face: Face) -> None:
    messages = [{"role": "user", "content": MARK}] * 50_000 + [{"role": "user", "content": "x"}] * 50_000
    refused(http.post(CHAT, json={"model": BASE, "messages": messages}), http, face)


def test_e55_large_bodies_are_413_before_they_are_read(http: httpx.Client, face: Face) -> None:
    declared = post(http, MARK.encode() * (2 << 20))
    refused(declared, http, face, status=413, code="body_too_large")
    chunked = http.post(COMPLETIONS, content=(MARK.encode() * 5461 for _ in range(80)), headers=JSON)
    refused(chunked, http, face, status=413, code="body_too_large")


E56 = {
    "empty": "",
    "array": f'["{MARK}"]',
    "string": f'"{MARK}"',
    "null": "null",
    "not JSON": "{" + MARK,
    "trailing": body() + MARK,
    "duplicate key": f'{{"model": "{BASE}", "prompt": "{MARK}", "prompt": "y"}}',
    "duplicate key within": raw("metadata", f'{{"a": "{MARK}", "a": "2"}}'),
    "model is a number": raw("model", "5"),
    "prompt missing": f'{{"model": "{BASE}", "user": "{MARK}"}}',
}


@each(E56)
def test_e56_no_object_of_ours(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_e56_other_content_types(kind: str, http: httpx.Client, face: Face) -> None:
    reply = http.post(COMPLETIONS, content=body(), headers={"content-type": kind})
    refused(reply, http, face, status=415)
    assert "application/json" in reply.json()["error"]["message"]


def test_e56_compressed_bodies(http: httpx.Client, face: Face) -> None:
    reply = http.post(COMPLETIONS, content=body(), headers={**JSON, "content-encoding": "gzip"})
    refused(reply, http, face, status=415)


E57 = {
    "misspelled": raw("temprature", f'"{MARK}"'),
    "huge": raw("x" * 10_000, f'"{MARK}"'),
    "many": body(**{f"x{number}": MARK for number in range(3000)}),
    "in a message": raw("messages", f'["{MARK}"]'),
    "prompt_embeds": raw("prompt_embeds", f'"{MARK}"'),
    "stream options without a stream": raw("stream_options", "{}"),
}


@each(E57)
def test_e57_unknown_fields_are_refused(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face)


@pytest.mark.parametrize(
    "harmless",
    [
        {"tools": []},
        {"tools": None},
        {"response_format": {"type": "text"}},
        {"tool_choice": "none"},
        {"store": False},
        {"service_tier": "auto"},
        {"user": "u-1"},
        {"metadata": {"team": "a"}},
        {"seed": None},
        {"stop": None},
        {"max_tokens": None},
        {"best_of": 1},
        {"suffix": ""},
    ],
)
def test_e57_what_asks_for_nothing_is_taken(harmless: dict[str, object], http: httpx.Client) -> None:
    assert http.post(COMPLETIONS, json=json.loads(body()) | harmless).status_code == 200


E58 = {
    "JSON mode": {"response_format": {"type": "json_object"}},
    "a schema": {"response_format": {"type": "json_schema", "json_schema": {"name": MARK, "schema": {"$ref": "#"}}}},
    "guided_regex": {"guided_regex": MARK + "(a+)+b"},
    "parentheses": {"guided_regex": MARK + "(" * 30_000 + ")" * 30_000},
    "guided_grammar": {"guided_grammar": f"root ::= {MARK} root"},
    "structured_outputs": {"structured_outputs": {"regex": MARK + "(a|aa)+$"}},
    "a template": {
        "chat_template": MARK + "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    },
    "tools": {"tools": [{"type": "function", "function": {"name": MARK, "parameters": {"pattern": "(a+)+$"}}}]},
}


@each(E58)
def test_e58_bombs_are_refused_unread(content: dict[str, object], http: httpx.Client, face: Face) -> None:
    began = time.process_time()
    for path, fields in ((COMPLETIONS, {"prompt": MARK}), (CHAT, {"messages": [{"role": "user", "content": MARK}]})):
        refused(http.post(path, json={"model": BASE, **fields, **content}), http, face, code="unsupported_field")
    assert time.process_time() - began < 2


E59 = {
    "empty prompt": prompt('""'),
    "empty list": prompt("[]"),
    "empty ids": prompt("[[]]"),
}


@each(E59)
def test_e59_empty_prompts(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face)


CHATS: dict[str, object] = {
    "no messages": [],
    "not a list": MARK,
    "odd role": [{"role": MARK, "content": MARK}],
    "no content": [{"role": "user", "name": MARK}],
    "null content": [{"role": "user", "content": None, "name": MARK}],
    "image": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/" + MARK}}]}],
    "too many parts": [{"role": "user", "content": [{"type": "text", "text": MARK}] * 5000}],
    "name": [{"role": "user", "content": MARK, "name": MARK}],
    "tool result": [{"role": "tool", "content": MARK, "tool_call_id": MARK}],
    "assistant last": [{"role": "assistant", "content": MARK}],
}


@each(CHATS)
def test_e59_chats_that_are_none(content: object, http: httpx.Client, face: Face) -> None:
    refused(post(http, turns(json.dumps(content)), CHAT), http, face)


def test_e59_what_the_sdk_sends_back_is_taken(http: httpx.Client) -> None:
    said: dict[str, object] = {"role": "assistant", "content": "y", "refusal": None, "tool_calls": None}
    messages = [{"role": "user", "content": "x"}, said | {"annotations": []}, {"role": "user", "content": "z"}]
    assert http.post(CHAT, json={"model": BASE, "messages": messages, "max_tokens": 1}).status_code == 200


E60 = {
    "negative": prompt("[-1]"),
    "past the vocabulary": prompt("[258]"),
    "past 31 bits": prompt("[2147483648]"),
    "huge": prompt(f"[{10**30}]"),
    "mixed": prompt(f'["{MARK}", 1]'),
    "bools": prompt("[true]"),
    "floats": prompt("[1.0]"),
    "nested too far": prompt("[[[1]]]"),
    "object": prompt("{}"),
}


@each(E60)
def test_e60_tokens_that_are_none(content: str, http: httpx.Client, face: Face) -> None:
    refused(post(http, content), http, face)


UNMARKED = {"empty", "null"}


def test_every_body_holds_what_no_error_repeats() -> None:
    """The groups themselves: what is looked for in each refusal was sent."""
    groups = (E48, E49, E50, E51, E52, E53, E54, DEEP, E56, E57, E59, E60)
    bodies = {name: content for group in groups for name, content in group.items() if name not in UNMARKED}
    for name, content in bodies.items():
        text = content if isinstance(content, str) else content.decode("utf-8", "ignore").replace("\0", "")
        assert MARK in text, name


def test_a_refusal_is_told_apart_from_an_answer(http: httpx.Client, face: Face) -> None:
    """The helper itself: a good answer passes, and what was sent is looked for."""
    reply = post(http, body())
    check_reply(reply)
    check_after(http, face)
    with pytest.raises(AssertionError, match="I7"):
        check_reply(post(http, raw("temprature", f'"{MARK}"')), sent="not known here")
