"""Bodies that are no text, no object, or no request of ours: cases E53 to E60, a group a case.

Each refusal is told with its status, its code and the field that is to blame; after every one of them the invariants
of tests/support/reply_checks.py hold. Roles that cannot be spoken for (E59) are in tests/server/test_tokens.py, how
long the loop stands still (E55) in tests/fuzz/test_loop.py.
"""

import json
import time
from collections.abc import Mapping

import httpx
import pytest

from tests.support.invariants import MARK
from tests.support.marked_bodies import (
    CHAT,
    COMPLETIONS,
    SYNTAX,
    VALUE,
    Odd,
    as_chat,
    body,
    each,
    prompt,
    raw,
    to_both,
    turns,
    values,
)
from tests.support.reply_checks import JSON, check_after, post, refused
from tests.support.server_rig import BASE, ServerRig

HALVES = ("\\ud800", "\\udfff", "\\ude00\\ud83d")
"""Of pairs of surrogates, and a pair the wrong way round."""
E53 = {
    f"{name} {ascii(odd)}": (content.replace("ODD", odd), field, SYNTAX)
    for odd in (*HALVES, "\\u0000")
    for name, content, field in (
        ("stop", raw("stop", f'"{MARK}ODD"'), "stop"),
        ("prompt", prompt(f'"{MARK}ODDb"'), "prompt"),
        ("one of the prompts", prompt(f'["{MARK}", "ODD"]'), "prompt"),
        ("a key", raw("ODD", "1"), None),
        ("a field's key", raw("logit_bias", '{"1ODD": 1}'), "logit_bias"),
        ("metadata", raw("metadata", f'{{"a": "{MARK}ODD"}}'), "metadata"),
        ("the user", raw("user", f'"{MARK}ODD"'), "user"),
        ("the adapter", raw("adapter_id", f'"{MARK}ODD"'), "adapter_id"),
        ("the model", raw("model", f'"{MARK}ODD"'), "model"),
    )
}
E53 |= {
    "NUL as it is": (prompt(f'"{MARK}\0b"'), None, SYNTAX),
    "NUL before": ("\0" + body(), None, SYNTAX),
    "NUL behind": (body() + "\0", None, SYNTAX),
    "seed of 20 digits": (raw("seed", "9" * 20), "seed", VALUE),
    "seed of 4000 digits": (raw("seed", "9" * 4000), "seed", VALUE),
    "seed of 5000 digits": (raw("seed", "9" * 5000), None, SYNTAX),
}


@each(E53)
def test_e53_no_text_and_no_number(
    content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    refused(post(http, content), http, rig, code=code, param=param)


E53_TURNS: dict[str, Odd] = {
    f"{name} {odd}": (content.replace("ODD", odd), "messages", SYNTAX)
    for odd in ("\\ud800", "\\u0000")
    for name, content in (
        ("content", f'{{"role": "user", "content": "{MARK}ODD"}}'),
        ("a part", f'{{"role": "user", "content": [{{"type": "text", "text": "{MARK}ODD"}}]}}'),
        ("role", f'{{"role": "{MARK}ODD", "content": "{MARK}"}}'),
        ("name", f'{{"role": "user", "content": "{MARK}", "name": "{MARK}ODD"}}'),
    )
}


@each(E53_TURNS)
def test_e53_no_text_in_a_turn(content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig) -> None:
    refused(post(http, turns(f"[{content}]"), CHAT), http, rig, code=code, param=param)


@pytest.mark.parametrize("path", ["models/a%00b", "adapters/a%00b", "adapters/a%00b/versions", "adapters/x@%00"])
def test_e53_no_text_in_a_path(path: str, http: httpx.Client, rig: ServerRig) -> None:
    """What cannot be a name is nobody's."""
    code, param = ("model_not_found", "model") if path.startswith("models") else ("adapter_not_found", None)
    refused(http.get(f"/v1/{path}"), http, rig, status=404, code=code, param=param)


def test_e53_what_only_looks_like_it(http: httpx.Client) -> None:
    assert post(http, raw("stop", '"NaN, Infinity and \\\\u0000"')).status_code == 200, "words in a text"
    assert post(http, raw("stop", '"\\\\ud800"')).status_code == 200, "an escaped backslash"
    assert post(http, raw("stop", '"\\ud83d\\ude00"')).status_code == 200, "a pair is one character"


E54: dict[str, Odd] = {
    name: (content, None, SYNTAX)
    for name, content in {
        "invalid UTF-8": body().replace(MARK, MARK + "\xff", 1).encode("latin-1"),
        "UTF-16": body().encode("utf-16"),
        "UTF-16 without a mark": body().encode("utf-16-le"),
        "UTF-16, the other way": body().encode("utf-16-be"),
        "UTF-32": body().encode("utf-32"),
        "UTF-32 without a mark": body().encode("utf-32-le"),
        "byte order mark": b"\xef\xbb\xbf" + body().encode(),
        "overlong": body().replace(MARK, MARK + "\xc0\x80", 1).encode("latin-1"),
        "a surrogate as it is": body().replace(MARK, MARK + "\ud800", 1).encode("utf-8", "surrogatepass"),
    }.items()
}


@each(E54)
def test_e54_other_encodings(content: bytes, param: str | None, code: str, http: httpx.Client, rig: ServerRig) -> None:
    for path in (COMPLETIONS, CHAT):
        refused(post(http, content, path), http, rig, code=code, param=param)


def test_e54_what_a_content_type_says_of_it_changes_nothing(http: httpx.Client, rig: ServerRig) -> None:
    said = {"content-type": "application/json; charset=utf-16"}
    assert http.post(COMPLETIONS, content=body(), headers=said).status_code == 200
    reply = http.post(COMPLETIONS, content=body().encode("utf-16"), headers=said)
    refused(reply, http, rig, code=SYNTAX, param=None)


DEEP: dict[str, Odd] = {
    "deep": ("[" * 100_000 + f'"{MARK}"' + "]" * 100_000, None, SYNTAX),
    "deep objects": (f'{{"{MARK}":' * 100_000, None, SYNTAX),
    "deeper than is parsed": ("[" * 20_000 + f'"{MARK}"' + "]" * 20_000, None, SYNTAX),
    "deep in a field": (raw("metadata", "[" * 900 + f'"{MARK}"' + "]" * 900), "metadata", VALUE),
}


@each(DEEP)
def test_e55_deep_nesting(content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig) -> None:
    refused(post(http, content), http, rig, code=code, param=param)


@pytest.mark.parametrize(("count", "param", "code"), [(2049, "messages", VALUE), (100_000, None, SYNTAX)])
def test_e55_many_messages(count: int, param: str | None, code: str, http: httpx.Client, rig: ServerRig) -> None:
    messages = [{"role": "user", "content": MARK}] * (count // 2) + [{"role": "user", "content": "x"}] * (
        count // 2 + 1
    )
    refused(http.post(CHAT, json={"model": BASE, "messages": messages}), http, rig, code=code, param=param)


def test_e55_large_bodies_are_413_before_they_are_read(http: httpx.Client, rig: ServerRig) -> None:
    said = turns(json.dumps([{"role": "user", "content": MARK * (20 * (1 << 20) // len(MARK))}]))
    refused(post(http, said, CHAT), http, rig, status=413, code="body_too_large", param=None)
    chunked = http.post(COMPLETIONS, content=(MARK.encode() * 5461 for _ in range(80)), headers=JSON)
    refused(chunked, http, rig, status=413, code="body_too_large", param=None)


E56: dict[str, Odd] = {
    "empty": ("", None, VALUE),
    "spaces": (" \n", None, SYNTAX),
    "array": (f'["{MARK}"]', None, VALUE),
    "string": (f'"{MARK}"', None, VALUE),
    "null": ("null", None, VALUE),
    "not JSON": ("{" + MARK, None, SYNTAX),
    "trailing": (body() + MARK, None, SYNTAX),
    "duplicate key": (f'{{"model": "{BASE}", "prompt": "{MARK}", "prompt": "y"}}', None, SYNTAX),
    "duplicate key, spelled otherwise": (raw("us\\u0065r", f'"{MARK}"'), None, SYNTAX),
    "duplicate key within": (raw("metadata", f'{{"a": "{MARK}", "a": "2"}}'), None, SYNTAX),
    "model is a number": (raw("model", "5"), "model", VALUE),
    "model missing": (f'{{"prompt": "{MARK}", "messages": []}}', "model", VALUE),
}
E56_ONE = {
    COMPLETIONS: (f'{{"model": "{BASE}", "user": "{MARK}"}}', "prompt", VALUE),
    CHAT: (f'{{"model": "{BASE}", "user": "{MARK}"}}', "messages", VALUE),
}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@each(E56)
def test_e56_no_object_of_ours(
    content: str, param: str | None, code: str, path: str, http: httpx.Client, rig: ServerRig
) -> None:
    refused(post(http, content, path), http, rig, code=code, param=param)


@pytest.mark.parametrize("path", E56_ONE)
def test_e56_without_what_is_asked(path: str, http: httpx.Client, rig: ServerRig) -> None:
    content, param, code = E56_ONE[path]
    refused(post(http, content, path), http, rig, code=code, param=param)


KINDS = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/json5", "text/json")


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("kind", [*KINDS, None])
def test_e56_other_content_types(kind: str | None, path: str, http: httpx.Client, rig: ServerRig) -> None:
    for content in (body(), ""):
        headers = {} if kind is None else {"content-type": kind}
        reply = http.post(path, content=content.encode(), headers=headers)
        refused(reply, http, rig, status=415, code="unsupported_media", param=None)
        assert "application/json" in reply.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_e56_compressed_bodies(encoding: str, http: httpx.Client, rig: ServerRig) -> None:
    reply = http.post(COMPLETIONS, content=body(), headers={**JSON, "content-encoding": encoding})
    refused(reply, http, rig, status=415, code="unsupported_media", param=None)


E57: dict[str, Odd] = {
    **values("temprature", f'"{MARK}"'),
    "huge": (raw("x" * 10_000, f'"{MARK}"'), "x" * 64, VALUE),
    "no name": (raw("", f'"{MARK}"'), "?", VALUE),
    "many": (body(**{f"x{number}": MARK for number in range(3000)}), None, SYNTAX),
    **values("prompt_embeds", f'"{MARK}"', code="unsupported_field"),
    **values("stream_options", "{}"),
}


@to_both(E57)
def test_e57_unknown_fields_are_refused(
    path: str, content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    refused(post(http, content, path), http, rig, code=code, param=param)


def test_e57_the_other_routes_fields_are_unknown(http: httpx.Client, rig: ServerRig) -> None:
    refused(post(http, raw("messages", f'["{MARK}"]')), http, rig, code=VALUE, param="messages")
    refused(post(http, as_chat(raw("echo", "true")), CHAT), http, rig, code=VALUE, param="echo")


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
    "a template": {
        "chat_template": MARK + "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    },
    "functions": {"functions": [{"name": MARK, "parameters": {"pattern": "(a+)+$"}}]},
}


@pytest.mark.parametrize("content", E58.values(), ids=E58.keys())
def test_e58_bombs_are_refused_unread(content: dict[str, object], http: httpx.Client, rig: ServerRig) -> None:
    began = time.process_time()
    for path, fields in ((COMPLETIONS, {"prompt": MARK}), (CHAT, {"messages": [{"role": "user", "content": MARK}]})):
        reply = http.post(path, json={"model": BASE, **fields, **content})
        refused(reply, http, rig, code="unsupported_field", param=next(iter(content)))
    assert time.process_time() - began < 2


def _schema(**schema: object) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": MARK, "schema": schema}}}


SCHEMA = "response_format.json_schema.schema"
E58_FORMS: dict[str, tuple[dict[str, object], str]] = {
    "a schema that is itself": (_schema(**{"$ref": "#"}), SCHEMA),
    "a schema of patterns": (
        _schema(allOf=[{"type": "string", "pattern": f"^.*{MARK}{number}.*$"} for number in range(400)]),
        SCHEMA,
    ),
    "a schema as wide as it may be": (_schema(enum=[MARK] * 16_400), SCHEMA),
    "a keyword": (_schema(contains={"const": MARK}), SCHEMA),
    "a type": (_schema(type=MARK), SCHEMA),
    "parentheses": ({"guided_regex": MARK + "(" * 30_000 + ")" * 30_000}, "guided_regex"),
    "what may be empty": ({"guided_regex": MARK + ".*" * 20_000}, "guided_regex"),
    "look-around": ({"structured_outputs": {"regex": f"(?={MARK})"}}, "structured_outputs.regex"),
    "a rule that is not there": ({"guided_grammar": f"root ::= {MARK} root"}, "guided_grammar"),
    "a rule that never ends": ({"guided_grammar": f"start: {MARK}\n{MARK}: {MARK} {MARK}"}, "guided_grammar"),
    "lines": ({"structured_outputs": {"grammar": "root ::= " + "\n" * 60_000 + MARK}}, "structured_outputs.grammar"),
    "choices": ({"guided_choice": [MARK * 90] * 1024}, "guided_choice"),
}


@pytest.mark.parametrize(("content", "param"), E58_FORMS.values(), ids=E58_FORMS.keys())
def test_e58_forms_that_are_bombs_are_refused(
    content: dict[str, object], param: str, http: httpx.Client, rig: ServerRig
) -> None:
    began = time.process_time()
    for path, fields in ((COMPLETIONS, {"prompt": MARK}), (CHAT, {"messages": [{"role": "user", "content": MARK}]})):
        reply = http.post(path, json={"model": BASE, **fields, **content})
        refused(reply, http, rig, code="grammar_invalid", param=param)
    assert time.process_time() - began < 2


E59 = values("prompt", '""', "[]", "[[]]", f'["{MARK}", ""]', "[[1], []]")


@each(E59)
def test_e59_empty_prompts(content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig) -> None:
    refused(post(http, content), http, rig, code=code, param=param)


def test_e59_an_empty_turn_is_a_turn(http: httpx.Client, rig: ServerRig) -> None:
    contents: tuple[object, ...] = ("", [])
    for content in contents:
        said = {"model": BASE, "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        assert http.post(CHAT, json=said).json()["usage"]["prompt_tokens"] == len("<user\n><assistant\n")
        check_after(http, rig)


FIRST = "messages[0]"
CHATS: dict[str, Odd] = {
    "no messages": ([], "messages", VALUE),
    "not a list": (MARK, "messages", VALUE),
    "no turn": ([MARK], FIRST, VALUE),
    "odd role": ([{"role": MARK, "content": MARK}], f"{FIRST}.role", VALUE),
    "no role": ([{"content": MARK}], f"{FIRST}.role", VALUE),
    "no content": ([{"role": "user", "name": MARK}], f"{FIRST}.content", VALUE),
    "null content": ([{"role": "user", "content": None, "name": MARK}], f"{FIRST}.content", VALUE),
    "a number": ([{"role": "user", "content": 5}], f"{FIRST}.content", VALUE),
    "a part without a type": ([{"role": "user", "content": [{"text": MARK}]}], f"{FIRST}.content", VALUE),
    "a part without a text": ([{"role": "user", "content": [{"type": "text", "texts": MARK}]}],
                              f"{FIRST}.content", VALUE),
    "a part with a null": ([{"role": "user", "content": [{"type": "text", "text": None}]}], f"{FIRST}.content", VALUE),
    "a part with more": ([{"role": "user", "content": [{"type": "text", "text": "x", "x": MARK}]}],
                         f"{FIRST}.content", VALUE),
    "a part that is none": ([{"role": "user", "content": [5]}], f"{FIRST}.content", VALUE),
    "image": ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/" + MARK}}]}],
              f"{FIRST}.content", VALUE),
    "too many parts": ([{"role": "user", "content": [{"type": "text", "text": MARK}] * 5000}],
                       f"{FIRST}.content", VALUE),
    "name": ([{"role": "user", "content": MARK, "name": MARK}], f"{FIRST}.name", VALUE),
    "tool result": ([{"role": "tool", "content": MARK, "tool_call_id": MARK}], f"{FIRST}.tool_call_id", VALUE),
    "assistant last": ([{"role": "assistant", "content": MARK}], "messages", "chat_refused"),
}  # fmt: skip


@each(CHATS)
def test_e59_chats_that_are_none(
    content: object, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    refused(post(http, turns(json.dumps(content)), CHAT), http, rig, code=code, param=param)


def test_e59_what_the_sdk_sends_back_is_taken(http: httpx.Client) -> None:
    said: dict[str, object] = {"role": "assistant", "content": "y", "refusal": None, "tool_calls": None}
    messages = [{"role": "user", "content": "x"}, said | {"annotations": []}, {"role": "user", "content": "z"}]
    assert http.post(CHAT, json={"model": BASE, "messages": messages, "max_tokens": 1}).status_code == 200


NO_TOKENS = ("[-1]", "[258]", "[2147483648]", f"[{10**30}]", "[1, -1]", "[[1], [-1]]", "[[1], [258]]")
E60 = values("prompt", *NO_TOKENS, f'["{MARK}", 1]', f'[1, "{MARK}"]', "[true]", "[1, true]", "[1.0]", "[[[1]]]", "{}")


@each(E60)
def test_e60_tokens_that_are_none(
    content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    reply = post(http, content)
    refused(reply, http, rig, code=code, param=param)
    assert "string should" not in reply.text and "valid string" not in reply.text, "nobody sent a string"


def test_every_body_holds_what_no_error_repeats() -> None:
    """The groups themselves: what is looked for in each refusal was sent."""
    groups: tuple[Mapping[str, Odd], ...] = (E53, E54, DEEP, E56, E57, E59, E60)
    bodies = {
        name: odd[0] for group in groups for name, odd in group.items() if name not in ("empty", "spaces", "null")
    }
    for name, content in bodies.items():
        text = content if isinstance(content, str) else content.decode("utf-8", "ignore").replace("\0", "")
        assert MARK in text, name
