"""The body of POST /v1/completions.

Owns its fields and bounds, and the four spellings of `prompt`. Knows neither tokens nor routes.
"""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from server.errors import BadRequest
from server.fields import TOKEN_IDS, GenerationBody, TokenId

Prompt = str | list[int]
MAX_PROMPTS = 256


class CompletionBody(GenerationBody):
    """`prompt` is a string, a list of strings, a list of token ids, or a list of such lists; kept as a list of prompts.

    `logprobs` is the number of alternatives beside each token; `max_tokens: 0` only goes with `echo`.
    """

    prompt: Annotated[list[str] | list[list[TokenId]], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] = 16
    echo: bool = False
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    best_of: Annotated[int | None, Field(ge=1, le=128)] = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list) or not value:
            raise ValueError("must be a string, a list of strings, a list of token ids, or a list of such lists")
        if len(value) > MAX_PROMPTS and not isinstance(value[0], int):
            raise ValueError(f"must hold at most {MAX_PROMPTS} prompts")
        if isinstance(value[0], int) and not isinstance(value[0], bool):
            value = [value]
        kinds = {type(item) for item in value}
        if kinds not in ({str}, {list}):
            raise ValueError("must hold only strings, only token ids, or only lists of token ids")
        if list in kinds:
            _check_ids(value)
        return value

    @model_validator(mode="after")
    def _agree(self) -> "CompletionBody":
        if self.max_tokens == 0 and not self.echo:
            raise BadRequest("`max_tokens` must be at least 1 unless `echo` is true.", "max_tokens")
        if self.best_of is not None and self.best_of != self.n:
            why = "`best_of` other than `n` is not served. Leave it out, and choose among the `n` answers."
            raise BadRequest(why, "best_of")
        return self

    @property
    def prompts(self) -> list[Prompt]:
        return list(self.prompt)


def _check_ids(lists: list[list[Any]]) -> None:
    """Raises ValueError. Told here, because pydantic would complain that they are no strings either."""
    if not all(lists):
        raise ValueError("a list of token ids must not be empty")
    if {kind for ids in lists for kind in set(map(type, ids))} != {int}:
        raise ValueError("token ids are whole numbers")
    if min(map(min, lists)) < 0 or max(map(max, lists)) >= TOKEN_IDS:
        raise ValueError(f"token ids go from 0 to {TOKEN_IDS - 1}")
