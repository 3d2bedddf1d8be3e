"""A server of which every answer is what a test says, and functions to call."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from server.tools.markup import HERMES, Markup
from tests.support.engine import FakeWorker
from tests.support.http import LiveServer, serve
from tests.support.server_rig import BASE, ServerRig, make_rig
from tests.support.tokenizer import ByteTokenizer

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Weather?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days"],
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Of a city.", "parameters": SCHEMA, "strict": True},
}
NOW: ChatCompletionToolParam = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


class Said:
    """A server of which every answer is `says`."""

    def __init__(self, live: LiveServer, rig: ServerRig, client: openai.OpenAI) -> None:
        self.live, self.rig, self.client = live, rig, client

    def whole(self, says: str, **wish: Any) -> Any:
        self.rig.worker.says = says
        usual: dict[str, Any] = {"model": BASE, "messages": ASK, "tools": TOOLS, "max_tokens": 400}
        return self.client.chat.completions.create(**usual | wish)

    def streamed(self, says: str, **wish: Any) -> list[Any]:
        chunks: list[Any] = list(self.whole(says, stream=True, **wish))
        return chunks


@contextlib.contextmanager
def saying(folder: Path, markup: Markup | None = HERMES) -> Iterator[Said]:
    """Over a base whose calls are spelled so."""
    rig = make_rig(folder, FakeWorker(), tokenizer=ByteTokenizer(markup))
    with serve(rig.app) as live, openai.OpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0) as client:
        yield Said(live, rig, client)
    rig.registry.close()


def calls(message: Any) -> list[tuple[str, str]]:
    """The names of the functions that a message calls, and their arguments as text."""
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def prompt_of(said: Said) -> str:
    """The latest request's, without its special tokens."""
    return bytes(id for id in said.rig.worker.seen[-1].prompt if id < 256).decode()


def result_of(message: Any) -> Any:
    """A message that answers the first call of this one."""
    return {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "5 C"}
