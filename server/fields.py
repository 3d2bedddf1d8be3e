"""The body fields that completions and chat share, and those that are known and not served.

Owns the sampling fields with their bounds, and the table of what is not served. Knows neither tokens nor routes.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from server.errors import BadRequest
from server.strict import Strict, Unserved
from server.structure import StructuredBody

_TOOLS = "A plain prompt calls no functions. Send messages to /v1/chat/completions."
_TEMPLATE = "The chat template is the base's own. Send a finished prompt to /v1/completions instead."
_ALWAYS = "Only the default is served. Leave it out."

UNSERVED: Mapping[str, Unserved] = {
    "tools": Unserved(_TOOLS, ([],)),
    "tool_choice": Unserved(_TOOLS, ("none", "auto")),
    "parallel_tool_calls": Unserved(_TOOLS, (True, False)),
    "functions": Unserved('It is now `tools`: send each as {"type": "function", "function": …} to a chat.', ([],)),
    "function_call": Unserved("It is now `tool_choice`, in chats.", ("none", "auto")),
    "guided_decoding_backend": Unserved("There is one backend. Leave it out."),
    "guided_whitespace_pattern": Unserved("Say it in the schema, or send `guided_regex` or `guided_grammar`."),
    "suffix": Unserved("Filling in the middle is not served. Put the text before the gap in `prompt`.", ("",)),
    "modalities": Unserved("Only text is served.", (["text"],)),
    "audio": Unserved("Only text is served."),
    "prediction": Unserved("Predicted outputs are not served. Leave it out; the answer is the same."),
    "web_search_options": Unserved("Web search is not served. Put what it would find in the messages."),
    "reasoning_effort": Unserved("The base has no reasoning setting. Leave it out.", ("none",)),
    "verbosity": Unserved("The base has no verbosity setting. Ask for it in the prompt."),
    "store": Unserved("Nothing is stored. Leave it out or send false.", (False,)),
    "service_tier": Unserved("There is one tier. Leave it out.", ("auto", "default")),
    "chat_template": Unserved(_TEMPLATE),
    "chat_template_kwargs": Unserved(_TEMPLATE, ({},)),
    "documents": Unserved(_TEMPLATE, ([],)),
    "add_generation_prompt": Unserved(_TEMPLATE, (True,)),
    "continue_final_message": Unserved(_TEMPLATE, (False,)),
    "prompt_logprobs": Unserved("Use `echo` with `logprobs` on /v1/completions."),
    "prompt_embeds": Unserved("Send text or token ids in `prompt`."),
    "bad_words": Unserved("Use `logit_bias` with -100 on the tokens.", ([],)),
    "allowed_token_ids": Unserved("Use `logit_bias`."),
    "truncate_prompt_tokens": Unserved("Prompts are never cut. Shorten the prompt."),
    "cache_salt": Unserved("Prefixes are never shared between tenants or adapters. Leave it out."),
    "priority": Unserved("Tenants take turns; there are no priorities. Leave it out.", (0,)),
    "use_beam_search": Unserved("Beam search is not served. Use `n` with a temperature.", (False,)),
    "length_penalty": Unserved(_ALWAYS, (1.0,)),
    "skip_special_tokens": Unserved(_ALWAYS, (True,)),
    "spaces_between_special_tokens": Unserved(_ALWAYS, (True,)),
    "include_stop_str_in_output": Unserved(_ALWAYS, (False,)),
    "lora": Unserved("Name the adapter in `model`."),
    "lora_path": Unserved("Name the adapter in `model`."),
    "adapter_source": Unserved("Upload the adapter to /v1/adapters and name it in `model`.", ("local",)),
    "merged_adapters": Unserved("One adapter a request is served. Name it in `model`."),
}


class StreamOptions(Strict):
    """`include_obfuscation` is OpenAI's padding against traffic analysis; only off is served."""

    include_usage: bool = False
    include_obfuscation: Annotated[bool, Field(description="Has no effect: chunks are not padded.")] = False


TOKEN_IDS = 1 << 31
"""More than any vocabulary has."""

TokenId = Annotated[int, Field(ge=0, lt=TOKEN_IDS)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
_Probability = Annotated[float, Field(gt=0, le=1)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class GenerationBody(StructuredBody):
    """What /v1/completions and /v1/chat/completions have in common. Names and defaults are OpenAI's, then vLLM's."""

    unserved = UNSERVED

    model: Annotated[str, Field(max_length=512)]
    adapter_id: Annotated[str | None, Field(max_length=512, description="LoRAX's spelling; empty is the base.")] = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: _Probability = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1 << 20, description="0 and -1 switch it off.")] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] = 1.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=1024)
    seed: Annotated[int | None, Field(ge=-(1 << 63), lt=1 << 63)] = None
    stop: Annotated[list[StopString], Field(max_length=16)] = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] = Field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    return_token_ids: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str | None, Field(max_length=512, description="Keeps to one version during a canary.")] = None
    safety_identifier: Annotated[str | None, Field(max_length=512, description="OpenAI's new name for `user`.")] = None
    prompt_cache_key: Annotated[
        str | None, Field(max_length=512, description="Has no effect: prefixes are cached by content.")
    ] = None
    metadata: Annotated[dict[str, str] | None, Field(max_length=16, description="Has no effect.")] = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("logit_bias")
    @classmethod
    def _token_keys(cls, value: dict[str, float]) -> dict[str, float]:
        if any(not (key.isascii() and key.isdecimal() and len(key) <= 9) for key in value):
            raise ValueError("each key must be a token id in decimal digits")
        return value

    def sticks_to(self, request_id: str) -> str:
        """What the choice between an alias's version and its canary sticks to: the user, else the seed."""
        user = self.user or self.safety_identifier
        if user:
            return f"user:{user}"
        return f"request:{request_id}" if self.seed is None else f"seed:{self.seed}"

    @model_validator(mode="after")
    def _a_form_decides_where_it_ends(self) -> "GenerationBody":
        structure = self.structure()
        if structure is not None:
            self.refuse_lengths_beside(structure.field)
        return self

    def refuse_lengths_beside(self, form: str) -> None:
        """Raises BadRequest where another field says too where the answer may end."""
        for field, asks in (("ignore_eos", self.ignore_eos), ("min_tokens", self.min_tokens > 0)):
            if asks:
                message = f"`{field}` does not go with `{form}`, which decides where the answer may end."
                raise BadRequest(f"{message} Send one of them.", field)

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise BadRequest("`stream_options` needs `stream: true`.", "stream_options")
        return self
