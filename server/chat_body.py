"""The body of POST /v1/chat/completions.

Owns its fields and bounds. Knows neither tokens nor routes.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from server.errors import BadRequest
from server.fields import GenerationBody
from server.ports import Message
from server.strict import Strict

MAX_PARTS = 2048


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """One turn. `content` may be OpenAI's list of text parts, which are joined in order."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

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
    def _no_calls(cls, data: Any) -> Any:
        """What an SDK sends back with an assistant's own turn: empty fields that ask for nothing."""
        if not isinstance(data, dict) or data.get("role") != "assistant":
            return data
        unused = ("refusal", "tool_calls", "function_call", "audio", "annotations", "reasoning_content")
        return {name: value for name, value in data.items() if not (name in unused and value in (None, []))}

    def message(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(self.role, content)


class ChatBody(GenerationBody):
    """`max_completion_tokens` and `max_tokens` mean the same; without either the answer may fill the context."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Annotated[int | None, Field(ge=1, lt=1 << 31)] = None
    max_tokens: Annotated[int | None, Field(ge=1, lt=1 << 31)] = None
    logprobs: bool = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None

    @model_validator(mode="after")
    def _agree(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("`top_logprobs` needs `logprobs: true`.", "top_logprobs")
        limits = {self.max_completion_tokens, self.max_tokens} - {None}
        if len(limits) > 1:
            raise BadRequest("`max_completion_tokens` and `max_tokens` differ. Send one of them.", "max_tokens")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
