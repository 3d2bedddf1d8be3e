"""Markups by templates like those of the families, and what is written in them."""

from collections.abc import Mapping

import pytest

from server.tools.markup import HERMES, LLAMA3, MARKUPS, MISTRAL, Function, markup_of, mentions_tools, short_id

QWEN = (
    "{%- if tools %}{{- '# Tools\\n<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}"
    '{{- "</tools>\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args>}\\n</tool_call>" }}'
    "{%- endif %}{%- for message in messages %}{{- message.content }}{%- endfor %}"
)
LLAMA = (
    "{%- if tools is not none %}{{- 'Environment: ipython\\n' }}"
    '{{- \'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.\' }}'
    "{%- endif %}{%- for message in messages %}{{- message.content }}{%- endfor %}"
)
NEMO = "{%- if tools %}[AVAILABLE_TOOLS]{%- endif %}{%- if message.tool_calls %}{{ '[TOOL_CALLS] [' }}{%- endif %}"
GRANITE = (
    "{% if tools %}Respond only with <|tool_call|> followed by a JSON list. {{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
)
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
TEMPLATES = {
    "Qwen": (QWEN, "hermes"),
    "Llama": (LLAMA, "llama3_json"),
    "Mistral": (NEMO, "mistral"),
    "none": (PLAIN, None),
    "Qwen3-Coder": (QWEN.replace('{\\"name\\"', "<function=f>\\n<parameter=p>"), "qwen3_coder"),
    "Granite": (GRANITE, "granite"),
    "Granite 4": (QWEN + GRANITE, "hermes"),
    "Phi-4-mini": ("{% if tools %}functools[{% endif %}", "phi4_mini_json"),
    "Mistral's later one": (NEMO + "[ARGS]", "mistral_args"),
    "Mistral's with ids": (NEMO + "[CALL_ID][ARGS]", None),
    "another": ("{% if tools %}<|tool|>{% endif %}", None),
}


@pytest.mark.parametrize(("template", "name"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_shows_its_markup(template: str, name: str | None) -> None:
    found = markup_of(template)
    assert (found and found.name) == name


@pytest.mark.parametrize(("template", "knows"), [(QWEN, True), (NEMO, True), (PLAIN, False), ("tools {{ x }}", False)])
def test_whether_a_template_mentions_tools(template: str, knows: bool) -> None:
    assert mentions_tools(template) == knows


WRITTEN: Mapping[str, str] = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"é": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
    "llama3_json": '{"name": "f", "parameters": {"é": 1}}\n{"name": "g", "parameters": {}}',
    "mistral": '[TOOL_CALLS][{"name": "f", "arguments": {"é": 1}}, {"name": "g", "arguments": {}}]',
    "mistral_args": '[TOOL_CALLS]f[ARGS]{"é": 1}[TOOL_CALLS]g[ARGS]{}',
    "smollm2": '<tool_call>[{"name": "f", "arguments": {"é": 1}}, {"name": "g", "arguments": {}}]</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=é>\n1\n</parameter>\n</function>\n</tool_call>\n"
    "<tool_call>\n<function=g>\n</function>\n</tool_call>",
    "granite": '<|tool_call|>[{"name": "f", "arguments": {"é": 1}}, {"name": "g", "arguments": {}}]',
    "phi4_mini_json": 'functools[{"name": "f", "arguments": {"é": 1}}, {"name": "g", "arguments": {}}]',
}


def test_calls_as_they_are_written() -> None:
    assert {name: markup.written([("f", {"é": 1}), ("g", {})]) for name, markup in MARKUPS.items()} == WRITTEN


def test_how_many_calls_an_answer_may_hold() -> None:
    assert (HERMES.max_calls, LLAMA3.max_calls, MISTRAL.max_calls) == (32, 1, 32)


CLOSED = {"type": "object", "properties": {"a": {}}, "additionalProperties": False}
SCHEMAS: Mapping[str, tuple[dict[str, object] | None, dict[str, object]]] = {
    "none": (None, {"type": "object", "properties": {}, "additionalProperties": False}),
    "anything": ({}, {"type": "object"}),
    "named ones": ({"properties": {"a": {}}}, CLOSED),
    "as it says": (CLOSED | {"additionalProperties": True}, CLOSED | {"additionalProperties": True}),
    "one that is needed and not named": (
        {"properties": {}, "required": ["b"]},
        {"type": "object", "properties": {}, "required": ["b"]},
    ),
    "no schema": ({"properties": 5, "required": 5}, {"type": "object", "properties": 5, "required": 5}),
    "odd names": ({"properties": {}, "required": [[]]}, {"type": "object", "properties": {}, "required": [[]]}),
    "in a branch": (
        {"properties": {}, "if": True, "then": {}},
        {"type": "object", "properties": {}, "if": True, "then": {}},
    ),
    "elsewhere": ({"$ref": "#/$defs/a", "properties": {}}, {"type": "object", "$ref": "#/$defs/a", "properties": {}}),
}


@pytest.mark.parametrize(("sent", "kept"), SCHEMAS.values(), ids=SCHEMAS)
def test_no_parameter_comes_that_is_not_named(sent: dict[str, object] | None, kept: dict[str, object]) -> None:
    function = Function("f", None, sent, "x")
    assert function.schema == kept
    assert function.described["function"]["parameters"] == (sent or {"type": "object", "properties": {}})


def test_short_ids() -> None:
    assert short_id("aB3456789") == "aB3456789"
    other = short_id("call_7")
    assert other == short_id("call_7") != short_id("call_8") and len(other) == 9 and other.isalnum()
