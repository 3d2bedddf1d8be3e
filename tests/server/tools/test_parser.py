"""Answers read piece by piece: the same as read at once, and what a plain reading of the whole text says."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tools.markup import HERMES, LLAMA3, MARKUPS, SPACE, Markup
from server.tools.parser import CallParser

Calls = list[tuple[str, str]]
"""Names, and arguments as they are written."""

NAMES = st.from_regex(r"[a-zA-Z0-9_-]{1,8}", fullmatch=True)
WORDS = st.text(st.sampled_from('ab é😀"\\{}[]<>/,:\n_tool_call'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda within: st.lists(within, max_size=3) | st.dictionaries(WORDS, within, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(WORDS, VALUES, max_size=3)), min_size=1, max_size=3)
GAP = st.text(st.sampled_from(SPACE), max_size=2)
MARKS = st.sampled_from([markup for markup in MARKUPS.values() if not markup.elements])
"""Those whose arguments are JSON; tests/server/tools/test_elements.py has the others."""


@st.composite
def answers(draw: st.DrawFn, markup: Markup, text: bool) -> str:
    """An answer as the grammar lets it be, with space wherever it may be; cut off anywhere, or not."""
    calls = draw(CALLS)[: markup.max_calls]
    said = draw(st.text(st.sampled_from("ab é\n<tool_call [{"), max_size=12)) if text and markup.begin else ""

    def spaced(*parts: str) -> str:
        return "".join(draw(GAP) + part for part in parts)

    bodies = []
    for name, arguments in calls:
        ascii = draw(st.booleans())
        given_ = json.dumps(arguments, ensure_ascii=ascii, indent=draw(st.sampled_from([None, 2])))
        if markup.between:
            bodies.append(f"{name}{markup.between}{given_}")
            continue
        parts = ("{", '"name"', ":", json.dumps(name), ",", json.dumps(markup.arguments), ":", given_, "}")
        bodies.append(spaced(*parts))
    if markup.listed:
        answer = said + markup.begin + spaced(markup.bracket) + spaced(",").join(bodies) + spaced("]", markup.end)
    else:
        answer = said + draw(GAP).join(f"{markup.begin}{body}{spaced(markup.end)}" for body in bodies)
    return answer[: draw(st.integers(0, len(answer)))] if draw(st.booleans()) else answer


def read(markup: Markup, anywhere: bool, pieces: Sequence[str]) -> tuple[str, Calls, bool]:
    """Its text, its calls, and whether the last one is cut off. Pieces come in order, each name with the first."""
    parser, text, calls = CallParser(markup, anywhere), "", Calls()
    for piece in pieces:
        new = parser.push(piece)
        assert not (new.text and calls), "text comes before calls"
        text += new.text
        for call in new.calls:
            assert (call.name is None) == (call.index < len(calls))
            if call.name is not None:
                assert call.index == len(calls)
                calls.append((call.name, ""))
            calls[call.index] = (calls[call.index][0], calls[call.index][1] + call.arguments)
    text += parser.finish().text
    assert parser.num_calls == len(calls)
    return text, calls, parser.within


def plainly(markup: Markup, anywhere: bool, answer: str) -> tuple[str, Calls, bool]:
    """The oracle: it has the whole answer, and JSON's own parser for arguments that are whole."""
    begun = answer.lstrip(SPACE)
    if anywhere and markup.begin:
        text, begin, rest = answer.partition(markup.begin)
        if not begin:
            return answer, [], False
        text = text.rstrip(SPACE)
    elif begun.startswith(markup.begin or "{"):
        text, rest = "", begun[len(markup.begin) :]
    else:
        return answer, [], False
    calls: Calls = []
    while True:
        name, rest = _next_call(markup, rest)
        if not rest:
            return text, calls, False
        try:
            _, end = json.JSONDecoder(strict=False).raw_decode(rest)
        except ValueError:
            return text, [*calls, (name, rest)], True
        calls.append((name, rest[:end]))
        rest = rest[end:]


def _next_call(markup: Markup, rest: str) -> tuple[str, str]:
    """The next call's name, and what is there from its arguments on; nothing if it is cut off before them."""
    if markup.between:
        before, _, arguments = rest.partition(markup.between)
        return before.rpartition(markup.begin)[2], arguments
    rest = rest.partition('"name"')[2].lstrip(SPACE)[1:].lstrip(SPACE)
    name, _, after = rest[1:].partition('"')
    key = json.dumps(markup.arguments)
    after = after.lstrip(SPACE)[1:].lstrip(SPACE)
    return name, after.removeprefix(key).lstrip(SPACE)[1:].lstrip(SPACE) if after.startswith(key) else ""


@given(st.data(), MARKS, st.booleans())
def test_pieces_are_the_whole_and_the_whole_is_what_a_plain_reading_says(
    data: st.DataObject, markup: Markup, anywhere: bool
) -> None:
    answer = data.draw(answers(markup, text=anywhere))
    whole = read(markup, anywhere, [answer])
    assert whole == plainly(markup, anywhere, answer)
    assert read(markup, anywhere, list(answer)) == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=5)))
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(markup, anywhere, pieces) == whole


@given(st.text(st.sampled_from("<tool_call> \n{a"), max_size=30), MARKS, st.booleans())
def test_any_text_is_kept_up_to_a_beginning(text: str, markup: Markup, anywhere: bool) -> None:
    assert read(markup, anywhere, list(text)) == read(markup, anywhere, [text]) == plainly(markup, anywhere, text)


@given(CALLS, MARKS)
def test_what_is_written_is_read(calls: list[tuple[str, dict[str, Any]]], markup: Markup) -> None:
    calls = calls[: markup.max_calls]
    text, found, within = read(markup, True, [markup.written(calls)])
    assert (text, within) == ("", False)
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


def test_arguments_come_as_they_are_written() -> None:
    parser = CallParser(HERMES, anywhere=True)
    told = [parser.push(letter) for letter in 'Well. <tool_call>{"name": "f", "arguments": {"a": "}\\""}}</tool_call>']
    assert "".join(piece.text for piece in told) == "Well."
    pieces = [call.arguments for piece in told for call in piece.calls]
    assert pieces == list('{"a": "}\\""}'), "character by character"


def test_a_name_is_held_until_it_is_whole() -> None:
    parser = CallParser(LLAMA3, anywhere=True)
    assert parser.push('{"name": "get_wea').calls == ()
    assert parser.finish().text == "" and parser.num_calls == 0, "markup is no text"


EXAMPLES: Mapping[str, tuple[Markup, str, str, Calls]] = {
    "Qwen": (
        HERMES,
        'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
        "I look.",
        [("f", '{"a": 1}'), ("g", "{}")],
    ),
    "Llama": (LLAMA3, '{"name": "f", "parameters": {"a": "b"}}', "", [("f", '{"a": "b"}')]),
    "Llama says": (LLAMA3, 'It is {"name"}.', 'It is {"name"}.', []),
    "Mistral": (
        MARKUPS["mistral"],
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"x": [1]}}]',
        "",
        [("f", "{}"), ("f", '{"x": [1]}')],
    ),
    "Mistral's later one": (
        MARKUPS["mistral_args"],
        'I look.[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g-2[ARGS]{}',
        "I look.",
        [("f", '{"a": 1}'), ("g-2", "{}")],
    ),
    "Granite": (
        MARKUPS["granite"],
        'I look. <|tool_call|>[{"name": "f", "arguments": {"a": "]"}}, {"name": "g", "arguments": {}}]',
        "I look.",
        [("f", '{"a": "]"}'), ("g", "{}")],
    ),
    "Phi-4-mini": (MARKUPS["phi4_mini_json"], 'functools[{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
    "SmolLM2": (MARKUPS["smollm2"], '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>', "", [("f", "{}")]),
}


@pytest.mark.parametrize(("markup", "answer", "text", "calls"), EXAMPLES.values(), ids=EXAMPLES)
def test_answers_of_each_family(markup: Markup, answer: str, text: str, calls: Calls) -> None:
    assert read(markup, True, [answer]) == (text, calls, False)
