"""Bodies that offer functions: what is refused, by field and code, what is taken, and what would be a bomb (E58)."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.invariants import MARK
from tests.support.marked_bodies import CHAT, VALUE
from tests.support.reply_checks import refused
from tests.support.saying import ASK, NAMED, NOW, TOOLS, Said, saying
from tests.support.server_rig import BASE, ServerRig


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    with saying(tmp_path_factory.mktemp("said")) as made:
        yield made


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def asked(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}, *turns]}


ONE = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MADE = {"role": "assistant", "content": None, "tool_calls": [ONE]}
FORM, FIELD = "grammar_invalid", "unsupported_field"


def made(arguments: str) -> dict[str, Any]:
    return asked(MADE | {"tool_calls": [ONE | {"function": {"name": "f", "arguments": arguments}}]})


NAMED_NOW = {"type": "function", "function": {"name": "now"}}


def allowed(*tools: dict[str, Any], mode: str = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


OF_LAST = "tools[1].function.parameters"
ARGUMENTS = "messages[1].tool_calls[0].function.arguments"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a choice without tools": ({"tool_choice": "required"}, "tool_choice", VALUE),
    "a name without tools": ({"tool_choice": NAMED}, "tool_choice", VALUE),
    "another choice": ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", VALUE),
    "no allowed functions": ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice", VALUE),
    "an empty list of allowed ones": ({"tools": TOOLS, "tool_choice": allowed()}, "tool_choice", VALUE),
    "an unknown allowed one": ({"tools": [NOW], "tool_choice": allowed(NAMED_NOW, NAMED)}, "tool_choice", VALUE),
    "allowed ones without tools": ({"tool_choice": allowed(NAMED)}, "tool_choice", VALUE),
    "too many allowed ones": ({"tools": TOOLS, "tool_choice": allowed(*[NAMED] * 129)}, "tool_choice", VALUE),
    "an allowed tool of another type": ({"tools": TOOLS, "tool_choice": allowed({"type": "mcp"})}, "tool_choice",
                                        VALUE),
    "another mode": ({"tools": TOOLS, "tool_choice": allowed(NAMED, mode="none")}, "tool_choice", VALUE),
    "more beside allowed ones": ({"tools": TOOLS, "tool_choice": allowed(NAMED) | {"mode": "auto"}}, "tool_choice",
                                 VALUE),
    "an unknown name": ({"tools": [NOW], "tool_choice": NAMED}, "tool_choice", VALUE),
    "another type": ({"tools": [{"type": "web_search"}]}, "tools[0].type", VALUE),
    "no function": ({"tools": [{"type": "function"}]}, "tools[0].function", VALUE),
    "a name with a space": ({"tools": [function(name="a b")]}, "tools[0].function.name", VALUE),
    "a long name": ({"tools": [function(name="a" * 65)]}, "tools[0].function.name", VALUE),
    "a name twice": ({"tools": [NOW, NOW]}, "tools[1].function.name", VALUE),
    "many": ({"tools": [function(name=f"f{n}") for n in range(129)]}, "tools", VALUE),
    "a schema of text": ({"tools": [function(parameters={"type": "string"})]}, "tools[0].function.parameters", VALUE),
    "a deep schema": ({"tools": [function(parameters=json.loads('{"a":' * 70 + "1" + "}" * 70))]},
                      "tools[0].function.parameters", VALUE),
    "a keyword": ({"tools": [NOW, function(parameters={"not": {}}, strict=True)]}, OF_LAST, FORM),
    "a large schema": ({"tools": [function(parameters={"const": "x" * 300_000})]}, "tools", FORM),
    "functions": ({"functions": [{"name": "f"}]}, "functions", FIELD),
    "function_call": ({"function_call": {"name": "f"}}, "function_call", FIELD),
    "a pattern beside them": ({"tools": TOOLS, "guided_regex": "a"}, "guided_regex", VALUE),
    "min_tokens": ({"tools": TOOLS, "min_tokens": 2}, "min_tokens", VALUE),
    "ignore_eos": ({"tools": TOOLS, "ignore_eos": True}, "ignore_eos", VALUE),
    "a result of nothing": (asked({"role": "tool", "content": "x", "tool_call_id": "1"}), "messages[1].tool_call_id",
                            VALUE),
    "a result without an id": (asked(MADE, {"role": "tool", "content": "x"}), "messages[2].tool_call_id", VALUE),
    "a result of another function": (asked(MADE, {"role": "tool", "content": "x", "tool_call_id": "1", "name": "g"}),
                                     "messages[2].name", VALUE),
    "an id twice": (asked(MADE | {"tool_calls": [ONE, ONE]}), "messages[1].tool_calls", VALUE),
    "calls of the user's": (asked({"role": "user", "content": "x", "tool_calls": [ONE]}), "messages[1].tool_calls",
                            VALUE),
    "an id of the user's": (asked({"role": "user", "content": "x", "tool_call_id": "1"}), "messages[1].tool_call_id",
                            VALUE),
    "an older call": (asked({"role": "assistant", "content": "", "function_call": {}}), "function_call", FIELD),
    "arguments that end early": (made('{"a": '), ARGUMENTS, VALUE),
    "arguments that are a list": (made("[]"), ARGUMENTS, VALUE),
    "half a character": (made('{"a": "\\ud800"}'), ARGUMENTS, VALUE),
    "no number": (made('{"a": NaN}'), ARGUMENTS, VALUE),
    "deep arguments": (made('{"a":' * 70 + "1" + "}" * 70), ARGUMENTS, VALUE),
    "very deep arguments": (made('{"a":' * 20_000), ARGUMENTS, VALUE),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(said: Said, fields: dict[str, Any], param: str, code: str) -> None:
    seen = len(said.rig.worker.seen)
    with said.live.client() as http:
        reply = http.post(CHAT, json={"model": BASE, "messages": ASK} | fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error
    assert len(said.rig.worker.seen) == seen


UNSERVED: dict[str, tuple[dict[str, Any], str]] = {
    "pydantic's set": ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
    "pydantic's decimal": ({"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}, "look-around"),
    "pydantic's path": ({"type": "string", "format": "path"}, "Unknown format"),
    "pydantic's union": (
        {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "discriminator": {"propertyName": "a"}},
        "oneOf",
    ),
    "Zod's email": (
        {
            "type": "string",
            "format": "email",
            "pattern": r"^(?!\.)(?!.*\.\.)([\w'+\-.]*)[\w+-]@(\w[\w\-]*\.)+[A-Za-z]{2,}$",
        },
        "look-around",
    ),
    "Zod's record": ({"type": "object", "propertyNames": {"enum": ["a"]}, "additionalProperties": {}}, "propertyNames"),
    "a negation": ({"not": {"type": "null"}}, "not"),
}
DEFS = {"a": {"type": "object", "properties": {"a": {"const": 1}}}, "b": {"type": "object"}}


@pytest.mark.parametrize(("schema", "named"), UNSERVED.values(), ids=UNSERVED)
def test_a_keyword_that_is_not_served_is_refused_by_name_if_a_function_is_strict(
    said: Said, schema: dict[str, Any], named: str
) -> None:
    parameters = {"type": "object", "properties": {"a": schema}, "$defs": DEFS}
    for more in ({}, {"strict": None}, {"strict": False}):
        tools: Any = [function(parameters=parameters, **more)]
        assert said.whole("x", tools=tools).choices[0].message.content == "x"
        shown = bytes(id for id in said.rig.worker.seen[-1].prompt if id < 256).decode()
        assert json.dumps(parameters)[1:-1] in shown, "the model sees all of it"
    with pytest.raises(openai.BadRequestError, match=f"(?s){named}.*Without `strict`") as refused:
        said.whole("x", tools=[function(parameters=parameters, strict=True)])
    assert (refused.value.param, refused.value.code) == ("tools[0].function.parameters", FORM)
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": parameters, "strict": False}}
    with pytest.raises(openai.BadRequestError, match=named):
        said.whole("x", response_format=form)


MALFORMED: dict[str, dict[str, Any]] = {
    "a type": {"type": "thing"},
    "a reference to nothing": {"$ref": "#/$defs/none"},
    "no schema": {"not": 5},
    "no number": {"minProperties": "many", "properties": {"b": {}}},
    "no pattern": {"type": "string", "pattern": "a["},
    "a bomb": {"type": "string", "pattern": "(?s:.*)" * 20_000},
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("schema", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_schema_is_refused_either_way(said: Said, schema: dict[str, Any], strict: bool) -> None:
    parameters = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(openai.BadRequestError) as refused:
        said.whole("x", tools=[function(parameters=parameters, strict=strict)])
    assert (refused.value.param, refused.value.code) == ("tools[0].function.parameters", FORM)


def test_what_is_taken(said: Said) -> None:
    """Clients' ways to say nothing, and ids that come again."""
    again = {"role": "tool", "content": "x", "tool_call_id": "1"}
    sent_back: dict[str, Any] = {"parsed": {"a": 1}, "refusal": None, "annotations": []}
    noted = ONE | {"index": 0, "function": {"name": "g", "arguments": "", "parsed_arguments": {"a": 1}}}
    turns = [MADE, again, MADE | {"tool_calls": [noted]} | sent_back, again | {"name": "g"}]
    said.whole("x", messages=[*ASK, *turns], extra_body={"functions": [], "function_call": "auto"})


def test_completions_call_nothing(said: Said) -> None:
    with said.live.client() as http:
        reply = http.post("/v1/completions", json={"model": BASE, "prompt": "x", "tools": TOOLS})
    assert reply.status_code == 400 and CHAT in reply.json()["error"]["message"]


def _tools(*schemas: object, strict: bool = False) -> dict[str, object]:
    functions = ({"name": f"f{n}", "parameters": each, "strict": strict} for n, each in enumerate(schemas))
    return {"tools": [{"type": "function", "function": function} for function in functions]}


E58_TOOLS: dict[str, tuple[dict[str, object], str, str]] = {
    "a pattern": (_tools({}, {"properties": {MARK: {"pattern": f"(?={MARK})"}}}, strict=True), OF_LAST, FORM),
    "patterns": (
        _tools({}, {"properties": {MARK: {"allOf": [{"pattern": f"^.*{MARK}{n}.*$"} for n in range(400)]}}}),
        "tools",
        FORM,
    ),
    "a keyword": (_tools({}, {"contains": {"const": MARK}}, strict=True), OF_LAST, FORM),
    "large together": (_tools(*[{"enum": [MARK * 10] * 100}] * 30), "tools", FORM),
    "wide": (_tools({}, {"enum": [MARK] * 16_400}), OF_LAST, VALUE),
    "deep": (_tools({}, json.loads('{"not":' * 80 + f'"{MARK}"' + "}" * 80)), OF_LAST, VALUE),
}


@pytest.mark.parametrize(("content", "param", "code"), E58_TOOLS.values(), ids=E58_TOOLS.keys())
def test_e58_functions_that_are_bombs_are_refused(
    content: dict[str, object], param: str, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    began = time.process_time()
    reply = http.post(CHAT, json={"model": BASE, "messages": [{"role": "user", "content": MARK}], **content})
    refused(reply, http, rig, code=code, param=param)
    assert time.process_time() - began < 2
