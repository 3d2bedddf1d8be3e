"""The turns of a chat as a body has them: text, an assistant's calls, and the answers to them.

Owns their fields and bounds. Knows neither tokens nor templates.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from server.errors import BadRequest
from server.grammars.bounds import check_schema
from server.ports import Message
from server.strict import Strict, Unserved
from server.tools.fields import MAX_TOOLS, Name
from server.tools.markup import Call

MAX_PARTS = 2048
_UNUSED = frozenset({"refusal", "tool_calls", "function_call", "audio", "annotations", "reasoning_content", "parsed"})
Id = Annotated[str, Field(min_length=1, max_length=256)]


class TextPart(Strict):
    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    name: Name
    arguments: Annotated[str, Field(description="A JSON object as text; empty for none.")]
    parsed_arguments: Annotated[Any, Field(description="Has no effect: OpenAI's client sends it back.")] = None

    @field_validator("arguments")
    @classmethod
    def _an_object(cls, text: str) -> str:
        _arguments(text)
        return text


class ToolCall(Strict):
    id: Id
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Annotated[int | None, Field(description="Has no effect: what streams number calls by.")] = None

    def call(self) -> Call:
        return Call(self.id, self.function.name, _arguments(self.function.arguments))


class ChatMessage(Strict):
    """One turn. `content` may be OpenAI's list of text parts, which are joined in order."""

    unserved: ClassVar[Mapping[str, Unserved]] = {
        "function_call": Unserved("Send the call in `tool_calls`, and its result as the role `tool`."),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_call_id: Id | None = None
    name: Annotated[Name | None, Field(description="Of the role `tool`: the function that was called.")] = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        """All faults are told here: of a union pydantic would tell what is wrong with each of its sides."""
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise ValueError("must be a string or a list of parts of type `text`")
        if len(value) > MAX_PARTS:
            raise ValueError(f"must hold at most {MAX_PARTS} parts")
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in value):
            raise ValueError("only parts of type `text` are served")
        if not all(part.keys() == {"type", "text"} and isinstance(part["text"], str) for part in value):
            raise ValueError("a part is `type` and `text`, which is a string")
        return value

    @model_validator(mode="before")
    @classmethod
    def _what_clients_send_back(cls, data: Any) -> Any:
        """Of an assistant's own turn: empty fields that ask for nothing, and no text beside calls."""
        if not isinstance(data, dict) or data.get("role") != "assistant":
            return data
        kept = {name: value for name, value in data.items() if not (name in _UNUSED and value in (None, []))}
        kept.pop("parsed", None)  # what OpenAI's client has read the text as
        if kept.get("tool_calls") and kept.get("content") is None:
            kept["content"] = ""
        return kept

    @field_validator("tool_calls", "tool_call_id", "name")
    @classmethod
    def _in_its_role(cls, value: Any, info: ValidationInfo) -> Any:
        role = "assistant" if info.field_name == "tool_calls" else "tool"
        if value is not None and info.data.get("role", role) != role:
            raise ValueError(f"only the role `{role}` has it; leave it out")
        return value

    def message(self, called: Mapping[str, str]) -> Message:
        """`called`: the names of functions by their calls' ids."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        calls = tuple(each.call() for each in self.tool_calls or ())
        id = self.tool_call_id or ""
        return Message(self.role, content, calls, id, called.get(id, ""))


def messages_of(turns: Sequence[ChatMessage]) -> list[Message]:
    """Raises BadRequest for a result of a call that nobody has made, and for two calls of one id in one turn.

    Where an id comes again in a later turn, results mean the latest.
    """
    called: dict[str, str] = {}
    messages = []
    for place, turn in enumerate(turns):
        within = f"messages[{place}]"
        ids = [call.id for call in turn.tool_calls or ()]
        if len(set(ids)) < len(ids):
            field = f"{within}.tool_calls"
            raise BadRequest(f"`{field}` has two calls of one id. Give each its own.", field)
        called |= {call.id: call.function.name for call in turn.tool_calls or ()}
        if turn.role == "tool" and turn.tool_call_id not in called:
            field = f"{within}.tool_call_id"
            why = f"`{field}` must be the id of a call before it. Send the assistant's message with its calls too."
            raise BadRequest(why, field)
        if turn.name is not None and turn.name != called[turn.tool_call_id or ""]:
            field = f"{within}.name"
            raise BadRequest(f"`{field}` is not the function that this id calls. Leave it out.", field)
        messages.append(turn.message(called))
    return messages


def _arguments(text: str) -> dict[str, Any]:
    """Raises ValueError. Some clients send empty text for no arguments."""
    try:
        read = json.loads(text or "{}")
        json.dumps(read, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):  # of what is no JSON, no finite number or no text
        raise ValueError("must be the text of a JSON object") from None
    if not isinstance(read, dict):
        raise ValueError("must be the text of a JSON object")
    check_schema(read)
    return read
