"""Functions that a model calls by elements, as Qwen3-Coder does, through OpenAI's client, which is told JSON."""

from pathlib import Path
from typing import Any

import openai
import pytest

from server.tools.markup import MARKUPS
from tests.support.models import tiny_tokenizer
from tests.support.real_engine_server import real_engine_server
from tests.support.saying import ASK, NAMED, NOTHING, NOW, SCHEMA, TOOLS, calls, prompt_of, result_of, saying
from tests.support.server_rig import BASE
from tests.support.structures import keeps_to, parsed

CODED = (
    '<tool_call>\n<function=get_weather>\n<parameter=city>\nOs"lo\n</parameter>\n'
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)


def test_a_markup_of_elements_is_told_as_json(tmp_path: Path) -> None:
    told = '{"city": "Os\\"lo", "days": 3}'
    with saying(tmp_path, MARKUPS["qwen3_coder"]) as said:
        choice = said.whole(f"I look.\n{CODED}").choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
        assert calls(choice.message) == [("get_weather", told)]
        chunks = said.streamed(CODED)
        pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
        assert "".join(piece.function.arguments for piece in pieces) == told and len(pieces) > 8
        cut = said.whole(CODED, max_tokens=CODED.index("lo\n")).choices[0]
        assert (cut.finish_reason, calls(cut.message)) == ("length", [("get_weather", '{"city": "Os\\"')])
        stopped = said.whole(CODED, stop=["lo"]).choices[0]
        assert (stopped.finish_reason, calls(stopped.message)) == ("stop", calls(cut.message))
        said.whole("Fine.", messages=[*ASK, choice.message, result_of(choice.message)])
        assert CODED in prompt_of(said), "earlier calls are written so too"
        said.whole(CODED, tool_choice=NAMED)
        constraint = said.rig.worker.seen[-1].constraint
        assert constraint is not None and constraint.complete


def test_what_a_markup_of_elements_cannot_write_is_refused(tmp_path: Path) -> None:
    with saying(tmp_path, MARKUPS["qwen3_coder"]) as said:
        schemas: list[Any] = [{"properties": {"a": {}}, "minProperties": 1}, {"properties": {"a>b": {}}}]
        for parameters in schemas:
            function = {"name": "f", "parameters": parameters, "strict": True}
            with pytest.raises(openai.BadRequestError, match="cannot be kept to") as refused:
                said.whole("x", tools=[NOW, {"type": "function", "function": function}])
            assert (refused.value.param, refused.value.code) == ("tools[1].function.parameters", "grammar_invalid")


OF_CODER = (
    "{% for tool in tools or [] %}<function>{{ tool.function.name }}</function>{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>\n<function={{ call.function.name }}>\n{% for name, value in call.function.arguments | items %}"
    "<parameter={{ name }}>\n{{ value }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def test_a_random_model_calls_by_elements(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = OF_CODER
    with (
        real_engine_server(tmp_path, blocks=2048, context=2048, tokenizer=tokenizer) as real,
        openai.OpenAI(base_url=f"{real.live.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        wish: dict[str, Any] = {"model": BASE, "messages": ASK, "tools": TOOLS, "max_tokens": 300}
        wish |= {"tool_choice": "required", "parallel_tool_calls": False}
        for seed in range(6):
            choice = client.chat.completions.create(**wish, seed=seed).choices[0]
            ((name, arguments),) = calls(choice.message)
            assert choice.finish_reason == "tool_calls"
            assert keeps_to(parsed(arguments), SCHEMA | {"additionalProperties": False} if name != "now" else NOTHING)
            chunks = client.chat.completions.create(**wish, seed=seed, stream=True)
            pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
            assert "".join(piece.function.arguments or "" for piece in pieces) == arguments
        again: Any = [*ASK, choice.message, result_of(choice.message)]
        assert client.chat.completions.create(**wish | {"messages": again}).choices[0].message.tool_calls
