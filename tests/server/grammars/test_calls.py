"""Answers that may call functions, followed byte by byte: what is called is declared, and its arguments fit."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from llguidance import LLTokenizer, TokenizerWrapper

from engine.constraint import Constraint
from server.errors import BadRequest
from server.grammars.compiler import Compiler
from server.structure import CallForm, Part, Structure
from server.tools.markup import HERMES, LLAMA3, MARKUPS, MISTRAL, Function, Markup
from server.tools.parser import CallParser
from tests.support.structures import COMPACT, allowed_bytes, in_elements, keeps_to, parsed, random_schema, written
from tests.support.tokenizer import END, START, byte_vocabulary

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rom"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
}
FUNCTIONS = (
    Function("get_weather", "Of a city.", WEATHER, "tools[0].function.parameters"),
    Function("now", None, None, "tools[1].function.parameters"),
    Function("now-utc", None, None, "tools[2].function.parameters"),
)


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(byte_vocabulary)


def form(markup: Markup = HERMES, forced: bool = False, most: int | None = None, **others: Any) -> CallForm:
    fields = {"functions": FUNCTIONS, "text": None, "tokens": {}} | others
    fields["elements"] = in_elements(fields["functions"]) if markup.elements else {}
    return CallForm(markup, forced=forced, max_calls=markup.max_calls if most is None else most, **fields)


def start(compiler: Compiler, of: CallForm) -> Constraint:
    return compiler.compile_now(Structure("tools", "calls", of))()


def goes(answer: Constraint, text: str | bytes) -> tuple[int, bool]:
    """How many bytes it takes, and whether it may end there."""
    raw = text.encode() if isinstance(text, str) else text
    for place, byte in enumerate(raw):
        if answer.complete or byte not in allowed_bytes(answer):
            return place, False
        answer.accept(byte)
    return len(raw), END in allowed_bytes(answer)


@pytest.mark.parametrize("markup", MARKUPS.values(), ids=MARKUPS)
@pytest.mark.parametrize("seed", range(12))
def test_whatever_must_call_calls_what_is_declared(compiler: Compiler, markup: Markup, seed: int) -> None:
    draw = random.Random(seed)
    schemas = {f"f{n}": _object(draw) | COMPACT for n in range(3)}
    functions = tuple(Function(name, None, schema, "x") for name, schema in schemas.items())
    for number in range(6):
        most = draw.choice((1, min(3, markup.max_calls)))
        answer = written(start(compiler, form(markup, True, most, functions=functions)), 100 * seed + number, 2000)
        assert answer is not None
        parser = CallParser(markup, False, in_elements(functions))
        piece = parser.push(answer.decode())
        assert piece.text == "" and 1 <= len(piece.calls) <= most and not parser.within
        assert all(keeps_to(parsed(call.arguments), schemas[str(call.name)]) for call in piece.calls)


def _object(draw: random.Random) -> dict[str, Any]:
    while True:
        schema = random_schema(draw)
        if schema.get("type") == "object":
            return schema


CALL = '{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}'
QWEN = f"<tool_call>\n{CALL}\n</tool_call>"
CODER = MARKUPS["qwen3_coder"]
DAYS = "<parameter=days>\n3\n</parameter>\n"
CODED = f"<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n{DAYS}</function>\n</tool_call>"
TAKEN: Mapping[str, tuple[CallForm, str]] = {
    "text": (form(), "Well, <b>no</b> {tool}_call > [1]\n"),
    "nothing": (form(), ""),
    "text, then a call": (form(), f"I look.\n{QWEN}"),
    "a call and space": (form(), f"{QWEN}\n"),
    "calls": (form(), f"{QWEN}\n{QWEN}{QWEN}"),
    "compact": (form(), '<tool_call>{"name":"now","arguments":{}}</tool_call>'),
    "a name that begins as another": (form(), '<tool_call>{"name":"now-utc","arguments":{}}</tool_call>'),
    "forced": (form(forced=True), QWEN),
    "Llama's text": (form(LLAMA3), "\n Well, {"),
    "Llama's call": (form(LLAMA3), CALL.replace("arguments", "parameters")),
    "Mistral's": (form(MISTRAL), f"[TOOL_CALLS] [{CALL}, {CALL}]"),
    "Mistral's later ones": (
        form(MARKUPS["mistral_args"]),
        '[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now-utc[ARGS]{}\n[TOOL_CALLS]get_weather[ARGS]{"city": "Rom"}',
    ),
    "SmolLM2's": (form(MARKUPS["smollm2"]), f"<tool_call>[{CALL}]</tool_call>"),
    "Granite's": (form(MARKUPS["granite"]), f"<|tool_call|>[{CALL}, {CALL}]"),
    "Phi-4-mini's": (form(MARKUPS["phi4_mini_json"]), f"functools[\n  {CALL},\n{CALL}\n]"),
    "text that names what begins a call": (form(MARKUPS["phi4_mini_json"]), "from functools import cache"),
    "Qwen3-Coder's": (form(CODER), f"I look.\n{CODED}\n{CODED}"),
    "Qwen3-Coder's without what need not be": (form(CODER), CODED.replace(DAYS, "")),
    "Qwen3-Coder's without line breaks behind values": (form(CODER), CODED.replace("\n</p", "</p")),
    "Qwen3-Coder's without parameters": (form(CODER), "<tool_call><function=now></function></tool_call>"),
    "Qwen3-Coder's beside a form": (form(CODER, text=Part("f", {"enum": [1]})), "1"),
    "a form": (form(text=Part("f", {"enum": [1, "<tool_call>"]})), '"<tool_call>"'),
    "a form's call": (form(text=Part("f", {"enum": [1]})), QWEN),
}


@pytest.mark.parametrize(("of", "text"), TAKEN.values(), ids=TAKEN)
def test_what_may_be_answered(compiler: Compiler, of: CallForm, text: str) -> None:
    assert goes(start(compiler, of), text) == (len(text), True)


def test_words_are_free(compiler: Compiler) -> None:
    for markup in MARKUPS.values():
        answer = start(compiler, form(markup))
        for _ in range(3):
            assert allowed_bytes(answer) >= {*range(128), END}
            answer.accept(ord("<"))


ONE = form(most=1)
NOT_TAKEN: Mapping[str, tuple[CallForm, str, str | int]] = {
    "an unknown function": (form(), '<tool_call>{"name": "', "rm"),
    "an unknown city": (form(), '<tool_call>{"name": "get_weather", "arguments": {"city": "', "Bonn"),
    "one parameter too many": (form(), '<tool_call>{"name": "get_weather", "arguments": {"city": "Rom", "', "x"),
    "a parameter where there is none": (form(), '<tool_call>{"name": "now", "arguments": {', '"'),
    "text within a call": (form(), "Well <tool_call>", "I"),
    "text after a call": (form(), QWEN, "So"),
    "the end within a call": (form(), "<tool_call>{", END),
    "the end within a string": (form(), '<tool_call>{"name": "get_weather", "arguments": {"', END),
    "text where a call must be": (form(forced=True), "", "W"),
    "a second call": (ONE, QWEN, "\n"),
    "Llama's second call": (form(LLAMA3), CALL.replace("arguments", "parameters"), ";"),
    "Llama's JSON": (form(LLAMA3), '{"', "city"),
    "another function": (form(MARKUPS["mistral_args"]), "[TOOL_CALLS]now", "x"),
    "another's parameter": (form(MARKUPS["mistral_args"]), "[TOOL_CALLS]now-utc[ARGS]{", '"'),
    "an empty list": (form(MISTRAL), "[TOOL_CALLS][", "]"),
    "Qwen3-Coder's unknown function": (form(CODER), "<tool_call><function=n", "a"),
    "Qwen3-Coder's unknown city": (form(CODER), CODED.partition("Oslo")[0], "Bonn"),
    "Qwen3-Coder's city that goes on": (form(CODER), CODED.partition("\n</p")[0], "x"),
    "Qwen3-Coder's number of another kind": (form(CODER), CODED.partition("3")[0], "0"),
    "Qwen3-Coder's missing parameter": (form(CODER), "<tool_call><function=get_weather>\n<", "/"),
    "Qwen3-Coder's parameter that comes again": (form(CODER), CODED.partition("\n</f")[0] + "\n<", "p"),
    "Qwen3-Coder's parameter where there is none": (form(CODER), "<tool_call><function=now>\n<", "p"),
    "text after Qwen3-Coder's": (form(CODER), CODED, "S"),
    "no form": (form(text=Part("f", {"enum": [1]})), "", "2"),
}


@pytest.mark.parametrize(("of", "begun", "then"), NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_what_may_not_be_answered(compiler: Compiler, of: CallForm, begun: str, then: str | int) -> None:
    answer = start(compiler, of)
    assert goes(answer, begun)[0] == len(begun)
    assert answer.complete or (ord(then[0]) if isinstance(then, str) else then) not in allowed_bytes(answer)


def test_one_call_is_all_there_is_where_only_one_may_be(compiler: Compiler) -> None:
    for of, text in ((ONE, QWEN), (form(MISTRAL, most=1), f"[TOOL_CALLS][{CALL}]")):
        answer = start(compiler, of)
        assert goes(answer, text) == (len(text), True) and answer.complete


def test_calls_come_to_an_end(compiler: Compiler) -> None:
    answer = start(compiler, form(most=3))
    assert goes(answer, QWEN * 3) == (3 * len(QWEN), True)
    assert ord("<") not in allowed_bytes(answer)


class _Special:
    """Bytes, and a markup's special tokens, whose names no byte spells."""

    eos_token_id, bos_token_id = END, None
    special_token_ids = (START, END, 258, 259, 260)
    tokens = [*(bytes([n]) for n in range(256)), b"<start>", b"<end>", b"[TOOL_CALLS]", b"[/TOOL_CALLS]", b"[ARGS]"]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


CLOSED = Markup("closed", "[TOOL_CALLS]", "[/TOOL_CALLS]")


@pytest.mark.parametrize("markup", [MISTRAL, CLOSED], ids=["a list", "with an end"])
@pytest.mark.parametrize("said", [b"", b"Well. "])
def test_a_markup_of_special_tokens(markup: Markup, said: bytes) -> None:
    compiler = Compiler(lambda: LLTokenizer(TokenizerWrapper(_Special())))
    marks = {
        text: id for text, id in (("[TOOL_CALLS]", 258), ("[/TOOL_CALLS]", 259)) if text in (markup.begin, markup.end)
    }
    answer = start(compiler, form(markup, tokens=marks))
    call = f"[{CALL}]" if markup.listed else CALL
    assert goes(answer, said)[0] == len(said)
    bits = int.from_bytes(answer.allowed(), "little")
    assert bits >> 258 & 1 and not bits >> 259 & 1
    answer.accept(258)
    assert END not in allowed_bytes(answer) and goes(answer, call)[0] == len(call)
    if markup.end:
        assert END not in allowed_bytes(answer)
        answer.accept(259)
        assert int.from_bytes(answer.allowed(), "little") >> 258 & 1, "another call"
    assert answer.complete or END in allowed_bytes(answer)
    spelled = start(compiler, form(markup, tokens=marks))
    assert goes(spelled, markup.begin + "so") == (len(markup.begin), False), "letters begin a call too"
    forced = start(compiler, form(markup, forced=True, tokens=marks))
    assert int.from_bytes(forced.allowed(), "little") == 1 << 258


def test_a_name_between_special_tokens() -> None:
    compiler = Compiler(lambda: LLTokenizer(TokenizerWrapper(_Special())))
    answer = start(compiler, form(MARKUPS["mistral_args"], forced=True, tokens={"[TOOL_CALLS]": 258, "[ARGS]": 260}))
    for name, arguments in (("now", "{}"), ("now-utc", "{ }"), ("get_weather", '{"city": "Rom"}')):
        answer.accept(258)
        assert goes(answer, name) == (len(name), False)
        bits = int.from_bytes(answer.allowed(), "little")
        assert bits == 1 << 260 | (1 << ord("-") if name == "now" else 0)
        answer.accept(260)
        assert goes(answer, arguments) == (len(arguments), True)


def test_a_fault_names_its_function(compiler: Compiler) -> None:
    bad = Function("g", None, {"type": "object", "not": {}}, "tools[3].function.parameters", strict=True)
    with pytest.raises(BadRequest) as refused:
        start(compiler, form(functions=(*FUNCTIONS, bad)))
    assert (refused.value.param, refused.value.code) == (bad.field, "grammar_invalid")
    assert 'Unimplemented keys: ["not"]' in refused.value.message
    assert refused.value.message.endswith("Without `strict`, what is not supported is not enforced.")
    start(compiler, form(functions=(*FUNCTIONS, replace(bad, strict=False))))
    with pytest.raises(BadRequest) as refused:
        start(compiler, form(text=Part("response_format", {"not": {}})))
    assert refused.value.param == "response_format" and "`strict`" not in refused.value.message


def test_schemas_that_are_bombs_together_are_refused(compiler: Compiler) -> None:
    patterns = {"allOf": [{"type": "string", "pattern": f"^.*{n}.*$"} for n in range(60)]}
    many = tuple(Function(f"f{n}", None, {"properties": {"p": patterns}}, f"tools[{n}]") for n in range(60))
    with pytest.raises(BadRequest) as refused:
        start(compiler, form(functions=many))
    assert refused.value.code == "grammar_invalid"
    large = Function("f", None, {"properties": {"p": {"const": "x" * 300_000}}}, "tools[0]")
    with pytest.raises(BadRequest, match="longer than 262144 bytes"):
        start(compiler, form(functions=(large,)))
    assert goes(start(compiler, form()), QWEN)[1], "the next one is read"


def test_as_many_functions_as_there_may_be(compiler: Compiler) -> None:
    many = tuple(Function(f"f{n}", None, WEATHER, "x") for n in range(128))
    answer = start(compiler, form(functions=many))
    text = '<tool_call>{"name": "f127", "arguments": {"city": "Rom"}}</tool_call>'
    assert goes(answer, text) == (len(text), True)
