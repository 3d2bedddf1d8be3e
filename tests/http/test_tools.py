"""Functions that a model may call, through OpenAI's client: over a worker that says what it is told, and over a tiny
random model, which knows nothing, so that whatever it calls is valid because it is made so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.tools.markup import LLAMA3, MARKUPS, MISTRAL, Markup
from tests.support.models import tiny_tokenizer
from tests.support.real_engine_server import RealEngineServer, real_engine_server
from tests.support.saying import ASK, NAMED, NOTHING, NOW, SCHEMA, TOOLS, Said, calls, prompt_of, result_of, saying
from tests.support.server_rig import BASE
from tests.support.structures import allowed_bytes, follow, keeps_to, parsed

CHAT = "/v1/chat/completions"
OSLO = '{"city": "Oslo", "days": 3}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {OSLO}}}\n</tool_call>'
BOTH = f'{CALL}\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>'


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    with saying(tmp_path_factory.mktemp("said")) as made:
        yield made


def test_a_call(said: Said) -> None:
    reply = said.whole(CALL)
    choice = reply.choices[0]
    assert (choice.finish_reason, choice.message.content, choice.stop_reason) == ("tool_calls", None, None)
    assert calls(choice.message) == [("get_weather", OSLO)]
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.id.startswith("call_")
    assert reply.usage.completion_tokens == len(CALL)
    assert said.whole(CALL).choices[0].message.tool_calls[0].id != call.id


def test_text_and_calls(said: Said) -> None:
    message = said.whole(f"I look.\n\n{BOTH}\n").choices[0].message
    assert message.content == "I look." and calls(message) == [("get_weather", OSLO), ("now", "{}")]
    assert len({call.id for call in message.tool_calls}) == 2


def test_text_alone(said: Said) -> None:
    choice = said.whole("It is <b>5</b> < 6.\n").choices[0]
    assert (choice.message.content, choice.message.tool_calls) == ("It is <b>5</b> < 6.\n", None)
    assert choice.finish_reason == "stop"
    empty = said.whole("").choices[0]
    assert (empty.message.content, empty.message.tool_calls, empty.finish_reason) == ("", None, "stop")


def test_a_stream_of_calls(said: Said) -> None:
    chunks = said.streamed(f"I look. {BOTH}", stream_options={"include_usage": True})
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "I look."
    pieces = [piece for delta in deltas for piece in delta.tool_calls or []]
    for index, (name, arguments) in enumerate([("get_weather", OSLO), ("now", "{}")]):
        first, *others = [piece for piece in pieces if piece.index == index]
        assert (first.type, first.function.name) == ("function", name) and first.id
        assert not any(piece.id or piece.type or piece.function.name for piece in others)
        told = [first.function.arguments, *(piece.function.arguments for piece in others)]
        assert told == list(arguments), "as they are generated"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["tool_calls"]
    assert chunks[-1].usage.completion_tokens == len(f"I look. {BOTH}")


def test_the_clients_own_reading_of_a_stream(said: Said) -> None:
    said.rig.worker.says = BOTH
    with said.client.chat.completions.stream(model=BASE, messages=ASK, tools=TOOLS, max_tokens=400) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls" and calls(final.message) == [("get_weather", OSLO), ("now", "{}")]
    again: list[Any] = [*ASK, final.message.model_dump(exclude_unset=True)]
    again += [{"role": "tool", "tool_call_id": call.id, "content": "5"} for call in final.message.tool_calls or []]
    assert said.whole("Five.", messages=again).choices[0].message.content == "Five."


@pytest.mark.parametrize("most", range(0, len(CALL), 3))
def test_max_tokens_cut_a_call(said: Said, most: int) -> None:
    """The arguments are as far as they came, and the stream says the same."""
    choice = said.whole(CALL, max_tokens=most + 1).choices[0]
    assert choice.finish_reason == "length"
    came = CALL[: most + 1].partition('"arguments": ')[2].partition("}\n<")[0][: len(OSLO)]
    assert calls(choice.message) == ([("get_weather", came)] if came else [])
    chunks = said.streamed(CALL, max_tokens=most + 1)
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
    assert "".join(piece.function.arguments for piece in pieces) == came
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == (choice.message.content or "") == (CALL[: most + 1] if most + 1 < len("<tool_call>") else "")


def test_a_stop_string_within_a_call(said: Said) -> None:
    choice = said.whole(CALL, stop=["Os"]).choices[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "Os"), "the call is not whole"
    assert calls(choice.message) == [("get_weather", '{"city": "')]
    behind = said.whole(CALL, stop=["</tool"]).choices[0]
    assert (behind.finish_reason, behind.stop_reason) == ("tool_calls", "</tool") and calls(behind.message)


def test_logprobs_and_ids_of_a_call(said: Said) -> None:
    wish: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "extra_body": {"return_token_ids": True}}
    whole = said.whole(CALL, **wish).choices[0]
    assert len(whole.logprobs.content) == len(CALL) and bytes(whole.token_ids).decode() == CALL
    chunks = [chunk.choices[0] for chunk in said.streamed(CALL, **wish)]
    assert [each for c in chunks for each in (c.logprobs.content if c.logprobs else [])] == whole.logprobs.content
    assert [id for choice in chunks for id in getattr(choice, "token_ids", None) or []] == whole.token_ids


def test_several_answers(said: Said) -> None:
    reply = said.whole(CALL, n=3)
    assert [calls(choice.message) for choice in reply.choices] == [[("get_weather", OSLO)]] * 3
    assert len({choice.message.tool_calls[0].id for choice in reply.choices}) == 3
    pieces: dict[int, str] = {}
    for chunk in said.streamed(CALL, n=3):
        for choice in chunk.choices:
            for piece in choice.delta.tool_calls or []:
                pieces[choice.index] = pieces.get(choice.index, "") + piece.function.arguments
    assert pieces == dict.fromkeys(range(3), OSLO)


def test_without_a_choice_to_call_the_model_is_told_of_nothing(said: Said) -> None:
    choice = said.whole(CALL, tool_choice="none").choices[0]
    assert (choice.message.content, choice.finish_reason) == (CALL, "stop"), "a text as any other"
    assert "get_weather" not in prompt_of(said) and said.rig.worker.seen[-1].constraint is None
    said.whole(CALL)
    assert "get_weather" in prompt_of(said) and "Of a city." in prompt_of(said)
    said.whole("Hi", tools=[], tool_choice="auto", parallel_tool_calls=False)
    assert said.rig.worker.seen[-1].constraint is None


def test_calls_and_results_are_in_the_prompt(said: Said) -> None:
    first = said.whole(CALL).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": [{"type": "text", "text": "5 C"}]}
    wishes: list[dict[str, Any]] = [{}, {"tool_choice": "none"}, {"tools": []}]
    for wish in wishes:
        said.whole("Five.", messages=[*ASK, first, result | {"name": "get_weather"}], **wish)
        assert CALL in prompt_of(said) and "<tool_response>\n5 C\n</tool_response>" in prompt_of(said)


def test_a_form_is_the_texts(said: Said) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["<tool_call>"]}}}
    told = said.whole('"<tool_call>"', response_format=form).choices[0]
    assert (told.message.content, told.finish_reason) == ('"<tool_call>"', "stop")
    assert calls(said.whole(CALL, response_format=form).choices[0].message) == [("get_weather", OSLO)]
    assert calls(said.whole(CALL, response_format=form, tool_choice="required").choices[0].message)


def test_one_call_where_no_more_may_be(said: Said) -> None:
    wishes: list[dict[str, Any]] = [{"parallel_tool_calls": False}, {"tool_choice": NAMED}]
    for wish in wishes:
        said.whole(CALL, **wish)
        constraint = said.rig.worker.seen[-1].constraint
        assert constraint is not None and constraint.complete
    said.whole(CALL)
    constraint = said.rig.worker.seen[-1].constraint
    assert constraint is not None and not constraint.complete


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_functions_are_called_and_no_others(said: Said, mode: str) -> None:
    now: Any = {"type": "function", "function": {"name": "now"}}
    wish: dict[str, Any] = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [now, now]}}
    said.whole('<tool_call>{"name": "now", "arguments": {}}</tool_call>', tool_choice=wish)
    assert "get_weather" in prompt_of(said) and '"now"' in prompt_of(said), "the model is told of all"
    constraint = said.rig.worker.seen[-1].constraint
    assert constraint is not None and not constraint.complete, "there may be another call"
    if mode == "auto":
        said.whole("", tool_choice=wish)
        constraint = said.rig.worker.seen[-1].constraint
        assert constraint is not None
        follow(constraint, b'<tool_call>{"name": "')
        assert allowed_bytes(constraint) == {ord("n")}


OTHERS = {
    "llama": (LLAMA3, f'{{"name": "get_weather", "parameters": {OSLO}}}'),
    "mistral": (MISTRAL, f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {OSLO}}}]'),
    "granite": (MARKUPS["granite"], f'<|tool_call|>[{{"name": "get_weather", "arguments": {OSLO}}}]'),
    "phi": (MARKUPS["phi4_mini_json"], f'functools[{{"name": "get_weather", "arguments": {OSLO}}}]'),
}


@pytest.mark.parametrize(("markup", "answer"), OTHERS.values(), ids=OTHERS)
def test_other_markups(markup: Markup, answer: str, tmp_path: Path) -> None:
    with saying(tmp_path, markup) as said:
        message = said.whole(answer).choices[0].message
        assert message.content is None and calls(message) == [("get_weather", OSLO)]
        assert len(message.tool_calls[0].id) == (9 if markup.short_ids else 29)
        form = {"type": "json_object"}
        if markup.begin:
            assert said.whole("{}", response_format=form).choices[0].message.content == "{}"
        else:
            with pytest.raises(openai.BadRequestError, match="calls are JSON too") as refused:
                said.whole("{}", response_format=form)
            assert refused.value.param == "response_format"


def test_a_markup_that_is_not_known(tmp_path: Path) -> None:
    with saying(tmp_path, None) as said:
        with pytest.raises(openai.BadRequestError, match="--tool-call-parser") as refused:
            said.whole("x")
        assert (refused.value.param, refused.value.code) == ("tools", "unsupported_field")
        assert said.whole("x", tool_choice="none").choices[0].message.content == "x"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngineServer]:
    with real_engine_server(tmp_path_factory.mktemp("tools"), blocks=2048, context=2048) as made:
        yield made


@pytest.fixture(scope="module")
def client(real: RealEngineServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.live.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["any", "named"])
@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_a_random_model_calls_what_is_declared(client: openai.OpenAI, choice: Any, temperature: float) -> None:
    for seed in range(4):
        reply = client.chat.completions.create(
            model=BASE, messages=ASK, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False,
            temperature=temperature, seed=seed, max_tokens=300,
        )  # fmt: skip
        answer = reply.choices[0]
        assert answer.finish_reason == "tool_calls"
        ((name, arguments),) = calls(answer.message)
        assert name == "get_weather" or choice == "required"
        assert keeps_to(parsed(arguments), SCHEMA | {"additionalProperties": False} if name != "now" else NOTHING)


def test_a_random_model_keeps_to_what_is_served_of_a_schema(client: openai.OpenAI) -> None:
    more = {"not": {"required": ["unit"]}, "dependentRequired": {"unit": ["days"]}, "minProperties": 3}
    for seed in range(4):
        reply = client.chat.completions.create(
            model=BASE, messages=ASK, tools=[_function(SCHEMA | more)], tool_choice="required",
            parallel_tool_calls=False, temperature=2, seed=seed, max_tokens=300,
        )  # fmt: skip
        ((_, arguments),) = calls(reply.choices[0].message)
        assert keeps_to(parsed(arguments), SCHEMA | {"additionalProperties": False})


def test_a_random_models_stream_is_the_whole_one(client: openai.OpenAI, real: RealEngineServer, tmp_path: Path) -> None:
    real.add(tmp_path, "loud", seed=4)
    for model in (BASE, "loud"):
        wish: dict[str, Any] = {"model": model, "messages": ASK, "tools": TOOLS, "seed": 3, "max_tokens": 300}
        wish |= {"tool_choice": NAMED}
        whole = client.chat.completions.create(**wish)
        told = "".join(
            piece.function.arguments
            for chunk in client.chat.completions.create(**wish, stream=True)
            for piece in chunk.choices[0].delta.tool_calls or []
        )
        assert [("get_weather", told)] == calls(whole.choices[0].message)


def test_a_random_model_that_may_call_need_not(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=BASE, messages=ASK, tools=TOOLS, max_tokens=30, temperature=0)
    assert reply.choices[0].message.content and not reply.choices[0].message.tool_calls


def test_a_second_turn_of_a_random_model(client: openai.OpenAI) -> None:
    wish: dict[str, Any] = {"model": BASE, "tools": TOOLS, "seed": 1, "max_tokens": 200}
    first = client.chat.completions.create(messages=ASK, tool_choice=NAMED, **wish).choices[0].message
    assert first.tool_calls is not None
    messages: Any = [*ASK, first, result_of(first)]
    reply = client.chat.completions.create(messages=messages, response_format={"type": "json_object"}, **wish)
    assert reply.choices[0].message.content or reply.choices[0].message.tool_calls


def _function(parameters: dict[str, Any]) -> Any:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def test_schemas_that_are_bombs_are_refused_and_hold_up_nobody(real: RealEngineServer) -> None:
    patterns = {"allOf": [{"type": "string", "pattern": f"^.*{n}.*$"} for n in range(300)]}
    body = {"model": BASE, "messages": ASK, "tools": [_function({"properties": {"p": patterns}})]}
    reply = real.http.post(CHAT, json=body)
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "grammar_invalid"
    fine = body | {"tools": [NOW], "tool_choice": "required", "max_tokens": 100, "parallel_tool_calls": False}
    answer: httpx.Response = real.http.post(CHAT, json=fine)
    assert answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "now"


OF_MISTRALS = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }} "
    "{% if m.tool_calls %}[TOOL_CALLS] {{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@pytest.mark.parametrize(("marks", "length"), [(["[TOOL_CALLS]"], 9), (["[TOOL_CALLS]", "[ARGS]"], 29)], ids=str)
def test_a_base_whose_markup_is_of_special_tokens(marks: list[str], length: int, tmp_path: Path) -> None:
    """Decoding leaves special tokens out, and the call is seen all the same."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = OF_MISTRALS + f"{{# {marks[-1]} #}}"
    begin = tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")
    with (
        real_engine_server(tmp_path, blocks=2048, context=2048, tokenizer=tokenizer) as real,
        openai.OpenAI(base_url=f"{real.live.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        wish: dict[str, Any] = {"model": BASE, "tools": TOOLS, "seed": 5, "max_tokens": 300}
        forced: dict[str, Any] = {"tool_choice": NAMED, "extra_body": {"return_token_ids": True}}
        whole = client.chat.completions.create(messages=ASK, **wish, **forced).choices[0]
        assert whole.model_dump()["token_ids"][0] == begin
        ((name, arguments),) = calls(whole.message)
        assert (whole.finish_reason, whole.message.content, name) == ("tool_calls", None, "get_weather")
        assert keeps_to(parsed(arguments), SCHEMA)
        again: Any = [*ASK, whole.message, result_of(whole.message)]
        chosen: dict[str, Any] = {"logit_bias": {str(begin): 100}, "temperature": 0, "parallel_tool_calls": False}
        chunks = list(client.chat.completions.create(messages=again, **wish, **chosen, stream=True))
        pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
        assert pieces[0].function.name in ("get_weather", "now") and len(pieces[0].id) == length
        assert keeps_to(parsed("".join(piece.function.arguments for piece in pieces)), {"type": "object"})
        none = client.chat.completions.create(messages=ASK, tool_choice="none", **wish | {"max_tokens": 5} | chosen)
        assert "[TOOL_CALLS]" not in (none.choices[0].message.content or ""), "left out as ever"
