"""The turns of a chat as a body has them: text, an assistant's calls, and the answers to them.

Owns their fields and bounds. Knows neither tokens nor templates.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from server.body import check_counts
from server.errors import BadRequest
from server.grammars.bounds import TooLarge, check_schema
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


class ToolCall(Strict):
    id: Id
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Annotated[int | None, Field(description="Has no effect: what streams number calls by.")] = None


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

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @property
    def calls(self) -> Sequence[ToolCall]:
        return self.tool_calls or ()


def messages_of(turns: Sequence[ChatMessage]) -> list[Message]:
    """With the arguments of calls read, which may take a while.

    Raises BadRequest for those that are no JSON object, for a result of a call that nobody has made, and for two calls
    of one id in one turn. Where an id comes again in a later turn, results mean the latest.
    """
    called: dict[str, str] = {}
    messages = []
    for place, turn in enumerate(turns):
        within = f"messages[{place}]"
        _check_ids(turn, called, within)
        called |= {call.id: call.function.name for call in turn.calls}
        calls = tuple(_read(call, f"{within}.tool_calls[{at}]") for at, call in enumerate(turn.calls))
        id = turn.tool_call_id or ""
        messages.append(Message(turn.role, turn.text, calls, id, called.get(id, "")))
    return messages


def _check_ids(turn: ChatMessage, called: Mapping[str, str], within: str) -> None:
    """Raises BadRequest. `called` are the names of functions by the ids of the calls before."""
    ids = {call.id for call in turn.calls}
    if len(ids) < len(turn.calls):
        field = f"{within}.tool_calls"
        raise BadRequest(f"`{field}` has two calls of one id. Give each its own.", field)
    if turn.role == "tool" and turn.tool_call_id not in called:
        field = f"{within}.tool_call_id"
        why = f"`{field}` must be the id of a call before it. Send the assistant's message with its calls too."
        raise BadRequest(why, field)
    if turn.name is not None and turn.name != called[turn.tool_call_id or ""]:
        field = f"{within}.name"
        raise BadRequest(f"`{field}` is not the function that this id calls. Leave it out.", field)


def _read(call: ToolCall, within: str) -> Call:
    """Raises BadRequest. Some clients send empty text for no arguments."""
    field = f"{within}.function.arguments"
    text = call.function.arguments or "{}"
    try:
        check_counts(text)
        read = json.loads(text)
        json.dumps(read, ensure_ascii=False, allow_nan=False).encode()
    except (BadRequest, ValueError, RecursionError):  # of what is too much, no JSON, no finite number or no text
        read = None
    if not isinstance(read, dict):
        raise BadRequest(f"`{field}` must be the text of a JSON object of moderate size.", field)
    try:
        check_schema(read)
    except TooLarge as error:
        raise BadRequest(f"`{field}` cannot be read: {error}. Send less.", field) from None
    return Call(call.id, call.function.name, read)
