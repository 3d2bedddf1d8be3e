"""Calls whose arguments come as elements, read piece by piece: the same as read at once, and what was written."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tools.markup import MARKUPS, Function
from server.tools.parser import CallParser
from tests.support.structures import in_elements

CODER = MARKUPS["qwen3_coder"]
STRING: dict[str, Any] = {"type": "string"}
OR_NULL: dict[str, Any] = {"anyOf": [STRING, {"type": "null"}]}
SCHEMAS = {"text": STRING, "größe": STRING, "maybe": OR_NULL, "any": {}, "quoted": STRING | {"pattern": "."}}
FUNCTIONS = [Function(name, None, {"properties": SCHEMAS}, "x") for name in ("f", "g-2")]
ELEMENTS = in_elements(FUNCTIONS)
JSON_ONES = ("any", "quoted")

WORDS = st.text(st.sampled_from('ab é😀"\\<>/\nnul=parmet{}'), max_size=12) | st.just("null")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda within: st.lists(within, max_size=3) | st.dictionaries(WORDS, within, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.fixed_dictionaries(
    {}, optional={"text": WORDS, "größe": WORDS, "maybe": WORDS | st.none(), "any": VALUES, "quoted": WORDS}
)
CALLS = st.lists(st.tuples(st.sampled_from(["f", "g-2"]), ARGUMENTS), min_size=1, max_size=3)


def read(pieces: Sequence[str]) -> tuple[str, list[tuple[str, str]], bool]:
    """Its text, its calls with their arguments as they are told, and whether the last one is cut off."""
    parser, text, calls = CallParser(CODER, True, ELEMENTS), "", list[tuple[str, str]]()
    for piece in pieces:
        new = parser.push(piece)
        text += new.text
        for call in new.calls:
            if call.name is not None:
                calls.append((call.name, ""))
            calls[call.index] = (calls[call.index][0], calls[call.index][1] + call.arguments)
    return text + parser.finish().text, calls, parser.within


def element(name: str, value: Any, ascii: bool, break_: bool) -> str:
    is_json = name in JSON_ONES or not isinstance(value, str | None)
    written = json.dumps(value, ensure_ascii=ascii) if is_json else "null" if value is None else value
    return f"<parameter={name}>\n{written}{chr(10) if break_ or written.endswith(chr(10)) else ''}</parameter>"


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    calls = draw(CALLS)
    gap = st.text(st.sampled_from(" \n"), max_size=2)
    answer = draw(st.sampled_from(["", "Well. ", "<tool", "</function>"]))
    for name, arguments in calls:
        answer += f"{draw(gap)}<tool_call>{draw(gap)}<function={name}>"
        for key, value in arguments.items():
            answer += draw(gap) + element(key, value, draw(st.booleans()), draw(st.booleans()))
        answer += f"{draw(gap)}</function>{draw(gap)}</tool_call>"
    return answer, calls


def plainly(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Any]]:
    """What is told of calls: the text `null` is null where null may be."""
    return [
        (name, {key: None if key == "maybe" and value == "null" else value for key, value in arguments.items()})
        for name, arguments in calls
    ]


@given(answers(), st.data())
def test_what_is_written_is_told_as_json(
    made: tuple[str, list[tuple[str, dict[str, Any]]]], data: st.DataObject
) -> None:
    answer, calls = made
    text, found, within = whole = read([answer])
    assert not within and text == answer.partition("<tool_call>")[0].rstrip()
    assert [(name, json.loads(arguments)) for name, arguments in found] == plainly(calls)
    assert read(list(answer)) == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=5)))
    assert read([answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]) == whole


@given(answers(), st.data())
def test_of_an_answer_that_is_cut_off_a_beginning_is_told(
    made: tuple[str, list[tuple[str, dict[str, Any]]]], data: st.DataObject
) -> None:
    answer = made[0][: data.draw(st.integers(0, len(made[0])))]
    text, found, within = whole = read([answer])
    assert read(list(answer)) == whole
    _, all_, _ = read([made[0]])
    if found:
        assert all_[: len(found) - 1] == found[:-1]
        name, arguments = found[-1]
        assert all_[len(found) - 1][0] == name and all_[len(found) - 1][1].startswith(arguments)
        assert within == ("</function>" not in re.split("<function=(?:f|g-2)>", answer)[-1])


@given(CALLS)
def test_what_is_laid_out_is_read(calls: list[tuple[str, dict[str, Any]]]) -> None:
    """As templates write it: strings without quotes, whatever the schema says."""
    kept = [
        (name, {key: value for key, value in arguments.items() if key not in JSON_ONES or not isinstance(value, str)})
        for name, arguments in calls
    ]
    _, found, within = read([CODER.written(kept)])
    assert not within and [(name, json.loads(arguments)) for name, arguments in found] == plainly(kept)


def test_text_is_told_character_by_character() -> None:
    parser = CallParser(CODER, True, ELEMENTS)
    answer = '<tool_call>\n<function=f>\n<parameter=text>\nSo "é"\n\n</parameter>\n<parameter=any>\n12\n</parameter>'
    told = ["".join(call.arguments for call in parser.push(letter).calls) for letter in answer]
    assert [each for each in told if each] == [
        '{"text": "', "S", "o", " ", '\\"', "é", '\\"', "\\n", '"', ', "any": ', "1", "2",
    ]  # fmt: skip


EXAMPLES: Mapping[str, tuple[str, str]] = {
    "no line break behind": ("<parameter=text>\nOslo</parameter>", '{"text": "Oslo"}'),
    "line breaks of its own": ("<parameter=text>\n\na\n\n</parameter>", '{"text": "\\na\\n"}'),
    "null as text": ("<parameter=text>\nnull\n</parameter>", '{"text": "null"}'),
    "null": ("<parameter=maybe>\nnull\n</parameter>", '{"maybe": null}'),
    "nearly null": ("<parameter=maybe>\nnullable\n</parameter>", '{"maybe": "nullable"}'),
    "half of null": ("<parameter=maybe>\nnul\n</parameter>", '{"maybe": "nul"}'),
    "nothing": ("<parameter=maybe>\n\n</parameter>", '{"maybe": ""}'),
    "an end within JSON": ('<parameter=quoted>\n"</parameter>"</parameter>', '{"quoted": "</parameter>"}'),
    "an end within text": ("<parameter=text>\n</function>\n</parameter>", '{"text": "</function>"}'),
    "none": ("", "{}"),
}


@pytest.mark.parametrize(("elements", "arguments"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples(elements: str, arguments: str) -> None:
    answer = f"<tool_call>\n<function=f>\n{elements}\n</function>\n</tool_call>"
    assert read([answer]) == read(list(answer)) == ("", [("f", arguments)], False)
