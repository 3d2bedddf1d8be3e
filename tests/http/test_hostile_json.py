"""Bodies that other servers answer with 500, or worse, with 200."""

import json

import httpx
import pytest

from tests.support.face import BASE, Face

JSON = {"content-type": "application/json"}


def body(**fields: object) -> str:
    return json.dumps({"model": BASE, "prompt": "x", "max_tokens": 2, **fields})


def raw(field: str, literal: str) -> str:
    return f'{{"model": "{BASE}", "prompt": "x", "{field}": {literal}}}'


TEXTS = {
    "empty": "",
    "array": "[]",
    "string": '"x"',
    "null": "null",
    "not json": "{",
    "trailing": body() + "x",
    "NaN": raw("temperature", "NaN"),
    "Infinity": raw("temperature", "Infinity"),
    "minus Infinity": raw("presence_penalty", "-Infinity"),
    "1e400": raw("temperature", "1e400"),
    "negative temperature": raw("temperature", "-1"),
    "bias NaN": raw("logit_bias", '{"1": NaN}'),
    "bias minus one": raw("logit_bias", '{"-1": 5}'),
    "bias at vocabulary": raw("logit_bias", '{"258": 5}'),
    "bias not a number": raw("logit_bias", '{"a": 5}'),
    "bias too many": body(logit_bias={str(token): 1 for token in range(100_000)}),
    "n huge": raw("n", "1000000000"),
    "n bool": raw("n", "true"),
    "n string": raw("n", '"2"'),
    "n float": raw("n", "2.0"),
    "n zero": raw("n", "0"),
    "best_of": raw("best_of", "5"),
    "logprobs huge": raw("logprobs", "1000000"),
    "max_tokens minus": raw("max_tokens", "-1"),
    "max_tokens zero": raw("max_tokens", "0"),
    "max_tokens float": raw("max_tokens", "1e308"),
    "max_tokens bool": raw("max_tokens", "true"),
    "max_tokens string": raw("max_tokens", '"5"'),
    "seed of 4000 digits": raw("seed", "9" * 4000),
    "seed of 5000 digits": raw("seed", "9" * 5000),
    "stop empty": raw("stop", '""'),
    "stop number": raw("stop", "[1]"),
    "stop too many": body(stop=["x"] * 10_000),
    "surrogate": raw("stop", '"\\ud800"'),
    "surrogate in key": raw("\\udfff", "1"),
    "NUL": raw("stop", '"\\u0000"'),
    "duplicate key": f'{{"model": "{BASE}", "prompt": "x", "prompt": "y"}}',
    "unknown field": raw("temprature", "1"),
    "unknown field that is huge": raw("x" * 10_000, "1"),
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep in a field": raw("metadata", "[" * 900 + "]" * 900),
    "prompt missing": f'{{"model": "{BASE}"}}',
    "prompt empty": raw("stream", "false").replace('"x"', '""'),
    "prompt empty list": raw("stream", "false").replace('"x"', "[]"),
    "prompt mixed": raw("stream", "false").replace('"x"', '["a", 1]'),
    "prompt bools": raw("stream", "false").replace('"x"', "[true]"),
    "prompt nested too far": raw("stream", "false").replace('"x"', "[[[1]]]"),
    "prompt negative id": raw("stream", "false").replace('"x"', "[-1]"),
    "prompt id past vocabulary": raw("stream", "false").replace('"x"', "[258]"),
    "prompt empty ids": raw("stream", "false").replace('"x"', "[[]]"),
    "prompt object": raw("stream", "false").replace('"x"', "{}"),
    "prompt_embeds": raw("prompt_embeds", '"AAAA"'),
    "model number": '{"model": 5, "prompt": "x"}',
    "stream options without stream": raw("stream_options", "{}"),
    "schema": raw("response_format", '{"type": "json_object"}'),
}
BYTES = {
    "invalid UTF-8": b'{"model": "\xff"}',
    "UTF-16": body().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + body().encode(),
    "overlong": b'{"model": "\xc0\x80"}',
}


def check(reply: httpx.Response, face: Face) -> None:
    assert 400 <= reply.status_code < 500, reply.text
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(reply.content) < 2000, "an error never repeats its input"
    assert reply.headers["x-request-id"]
    assert not face.worker.running


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_refused(name: str, http: httpx.Client, face: Face) -> None:
    check(http.post("/v1/completions", content=TEXTS[name], headers=JSON), face)


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_refused(name: str, http: httpx.Client, face: Face) -> None:
    check(http.post("/v1/completions", content=BYTES[name], headers=JSON), face)


CHATS: dict[str, object] = {
    "no messages": [],
    "not a list": "x",
    "too many": [{"role": "user", "content": "x"}] * 10_000,
    "odd role": [{"role": "root", "content": "x"}],
    "no content": [{"role": "user"}],
    "null content": [{"role": "user", "content": None}],
    "image": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}],
    "name": [{"role": "user", "content": "x", "name": "bob"}],
    "tool result": [{"role": "tool", "content": "x", "tool_call_id": "1"}],
    "assistant last": [{"role": "assistant", "content": "x"}],
}


@pytest.mark.parametrize("name", CHATS)
def test_chats_are_refused(name: str, http: httpx.Client, face: Face) -> None:
    check(http.post("/v1/chat/completions", json={"model": BASE, "messages": CHATS[name]}), face)


def test_what_the_sdk_sends_back_is_taken(http: httpx.Client) -> None:
    said: dict[str, object] = {
        "role": "assistant",
        "content": "y",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
    }
    messages = [{"role": "user", "content": "x"}, said, {"role": "user", "content": "z"}]
    reply = http.post("/v1/chat/completions", json={"model": BASE, "messages": messages, "max_tokens": 1})
    assert reply.status_code == 200


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
def test_what_asks_for_nothing_is_taken(harmless: dict[str, object], http: httpx.Client) -> None:
    assert http.post("/v1/completions", json=json.loads(body()) | harmless).status_code == 200


def test_large_bodies_are_413_before_they_are_read(http: httpx.Client) -> None:
    declared = http.post("/v1/completions", content=b"x" * (5 << 20), headers=JSON)
    assert declared.status_code == 413
    chunked = http.post("/v1/completions", content=(b"x" * 65536 for _ in range(80)), headers=JSON)
    assert chunked.status_code == 413
    assert chunked.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_content_types_are_415(kind: str, http: httpx.Client) -> None:
    reply = http.post("/v1/completions", content=body(), headers={"content-type": kind})
    assert reply.status_code == 415
    assert "application/json" in reply.json()["error"]["message"]


def test_compressed_bodies_are_415(http: httpx.Client) -> None:
    reply = http.post("/v1/completions", content=body(), headers={**JSON, "content-encoding": "gzip"})
    assert reply.status_code == 415


def test_an_escaped_backslash_is_no_surrogate(http: httpx.Client) -> None:
    reply = http.post("/v1/completions", content=raw("stop", '"\\\\ud800"'), headers=JSON)
    assert reply.status_code == 200


def test_a_pair_of_surrogates_is_one_character(http: httpx.Client) -> None:
    assert http.post("/v1/completions", content=raw("stop", '"\\ud83d\\ude00"'), headers=JSON).status_code == 200
