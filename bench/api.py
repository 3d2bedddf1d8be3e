"""The API dialects of servers: the body of a streaming completion, and how tokens are counted in its events.

Owns the three dialects. Sends nothing itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One completion: `output_tokens` tokens of `model` after the token ids in `prompt`.

    Greedy, unless `extra_body`, more fields of an OpenAI-style body, says something else.
    """

    model: str
    prompt: tuple[int, ...]
    output_tokens: int
    extra_body: Mapping[str, Any] = field(default_factory=dict)


class Api(Protocol):
    """A dialect. `exact`: an answer must have exactly as many tokens as were asked for."""

    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def exact(self) -> bool: ...

    def body(self, request: CompletionRequest) -> dict[str, Any]: ...

    def tokens(self, event: Mapping[str, Any]) -> int:
        """The number of tokens in this server-sent event."""
        ...

    def ids(self, event: Mapping[str, Any]) -> Sequence[int]:
        """The ids of the tokens in this event; empty where the dialect does not send ids."""
        ...

    def total(self, event: Mapping[str, Any]) -> int | None:
        """The number of tokens of the whole answer, where this event has it."""
        ...


@dataclass(frozen=True, slots=True)
class OpenAI:
    """The plain completions API. An answer may end early: its usage has the number of tokens, and for the timing of
    gaps each chunk counts as one token."""

    path: str = "/v1/completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        return _completion(request) | {"stream_options": {"include_usage": True}}

    def tokens(self, event: Mapping[str, Any]) -> int:
        return sum(bool(choice.get("text")) for choice in event["choices"])

    def ids(self, event: Mapping[str, Any]) -> Sequence[int]:
        return ()

    def total(self, event: Mapping[str, Any]) -> int | None:
        return _usage(event)


@dataclass(frozen=True, slots=True)
class Vllm:
    """With vLLM's extensions, which Rootstock has too: `ignore_eos` fixes the length, token ids are counted."""

    path: str = "/v1/completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    exact: bool = True

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        return _completion(request) | {"ignore_eos": True, "return_token_ids": True}

    def tokens(self, event: Mapping[str, Any]) -> int:
        return len(self.ids(event))

    def ids(self, event: Mapping[str, Any]) -> Sequence[int]:
        return [id for choice in event["choices"] for id in choice.get("token_ids") or ()]

    def total(self, event: Mapping[str, Any]) -> int | None:
        return _usage(event)


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """llama.cpp's own route. Its adapters are numbers: `adapters` maps each name to its number.

    Every request sets the scale of every adapter, since one that is left out keeps the scale that the server started
    with. Connections are closed, since one that is kept alive holds its slot. Prompts are not cached, as elsewhere.
    """

    adapters: Mapping[str, int]
    path: str = "/completion"
    headers: Mapping[str, str] = field(default_factory=lambda: {"connection": "close"})
    exact: bool = True

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        return {
            "prompt": list(request.prompt),
            "n_predict": request.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
            "lora": [{"id": id, "scale": float(name == request.model)} for name, id in self.adapters.items()],
        }

    def tokens(self, event: Mapping[str, Any]) -> int:
        return len(self.ids(event))

    def ids(self, event: Mapping[str, Any]) -> Sequence[int]:
        return () if event.get("stop") else event.get("tokens") or ()

    def total(self, event: Mapping[str, Any]) -> int | None:
        """A token that ends within a character is in no event, so the last one's count is the answer's length."""
        return event.get("tokens_predicted") if event.get("stop") else None


def _usage(event: Mapping[str, Any]) -> int | None:
    usage = event.get("usage")
    return usage["completion_tokens"] if usage else None


class Dialect(StrEnum):
    """The dialects' names on the command line."""

    OPENAI = "openai"
    VLLM = "vllm"
    LLAMA_CPP = "llama.cpp"


def _completion(request: CompletionRequest) -> dict[str, Any]:
    return {
        "model": request.model,
        "prompt": list(request.prompt),
        "max_tokens": request.output_tokens,
        "temperature": 0,
        "stream": True,
        **request.extra_body,
    }
