"""The body of POST /v1/chat/completions.

Owns its fields and bounds. Knows neither tokens nor routes.
"""

from typing import Annotated

from pydantic import Field, model_validator

from server.chat_messages import ChatMessage
from server.errors import BadRequest
from server.fields import GenerationBody
from server.tools.fields import ToolsBody


class ChatBody(GenerationBody, ToolsBody):
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
        if self.offer() is not None:
            self.refuse_lengths_beside("tools")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
