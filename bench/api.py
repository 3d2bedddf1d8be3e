"""How servers spell one streaming completion: what is sent to them, and how tokens are counted in what comes back.

Owns the three dialects that differ. Sends nothing itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Ask:
    """One greedy completion: `model` shall put `output_tokens` tokens after the token ids in `prompt`."""

    model: str
    prompt: tuple[int, ...]
    output_tokens: int


class Api(Protocol):
    """`exact` says whether an answer must have as many tokens as were asked for."""

    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def exact(self) -> bool: ...

    def body(self, ask: Ask) -> dict[str, Any]: ...

    def tokens(self, event: Mapping[str, Any]) -> int:
        """How many tokens this server-sent event brings."""
        ...

    def ids(self, event: Mapping[str, Any]) -> Sequence[int]:
        """Which tokens they are; none where the dialect does not tell."""
        ...

    def total(self, event: Mapping[str, Any]) -> int | None:
        """How many tokens the whole answer has, where this event tells it."""
        ...


@dataclass(frozen=True, slots=True)
class OpenAI:
    """The completions API and nothing beyond it. An answer may end early; its usage says how many tokens came, and
    each chunk counts as one when gaps are timed."""

    path: str = "/v1/completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False

    def body(self, ask: Ask) -> dict[str, Any]:
        return _completion(ask) | {"stream_options": {"include_usage": True}}

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

    def body(self, ask: Ask) -> dict[str, Any]:
        return _completion(ask) | {"ignore_eos": True, "return_token_ids": True}

    def tokens(self, event: Mapping[str, Any]) -> int:
        return len(self.ids(event))

    def ids(self, event: Mapping[str, Any]) -> Sequence[int]:
        return [id for choice in event["choices"] for id in choice.get("token_ids") or ()]

    def total(self, event: Mapping[str, Any]) -> int | None:
        return _usage(event)


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """llama.cpp's own route, whose adapters are numbers: `adapters` gives the number of each name.

    Every adapter is named in every request: one that is left out keeps the scale that the server started with, and
    a connection that is kept alive holds its slot. A prompt is computed anew each time, as elsewhere.
    """

    adapters: Mapping[str, int]
    path: str = "/completion"
    headers: Mapping[str, str] = field(default_factory=lambda: {"connection": "close"})
    exact: bool = True

    def body(self, ask: Ask) -> dict[str, Any]:
        return {
            "prompt": list(ask.prompt),
            "n_predict": ask.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
            "lora": [{"id": id, "scale": float(name == ask.model)} for name, id in self.adapters.items()],
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
    """The names under which a command takes them."""

    OPENAI = "openai"
    VLLM = "vllm"
    LLAMA_CPP = "llama.cpp"


def _completion(ask: Ask) -> dict[str, Any]:
    return {
        "model": ask.model,
        "prompt": list(ask.prompt),
        "max_tokens": ask.output_tokens,
        "temperature": 0,
        "stream": True,
    }
