"""From a body's fields to the engine's sampling parameters, one request a choice.

Owns that mapping and the checks that need the vocabulary. Knows no response format.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from adapters.manifest import AdapterId
from engine.constraint import Constraint
from engine.sequence import Request, SamplingParams
from server.errors import BadRequest
from server.fields import GenerationBody


@dataclass(frozen=True, slots=True)
class RouteParams:
    """What the two routes decide by themselves: lengths in tokens, and how many alternatives to report."""

    max_tokens: int
    logprobs: int | None = None
    prompt_logprobs: int | None = None


def sampling_params(body: GenerationBody, route: RouteParams, vocab_size: int) -> SamplingParams:
    """Raises BadRequest for a token id outside the vocabulary."""
    bias = {int(token): weight for token, weight in body.logit_bias.items()}
    check_tokens(list(bias), vocab_size, "logit_bias")
    check_tokens(body.stop_token_ids, vocab_size, "stop_token_ids")
    if body.min_tokens > route.max_tokens:
        raise BadRequest("`min_tokens` is larger than the number of tokens the answer may have.", "min_tokens")
    return SamplingParams(
        max_tokens=route.max_tokens,
        min_tokens=body.min_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=bias,
        seed=body.seed,
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        logprobs=route.logprobs,
        prompt_logprobs=route.prompt_logprobs,
    )


def requests_for(
    request_id: str,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    n: int,
    adapter: AdapterId | None,
    tenant: str,
    constraint: Callable[[], Constraint] | None = None,
    shown: Mapping[int, str] = MappingProxyType({}),
) -> list[Request]:
    """`n` requests a prompt, in the order of the choices; the i-th answer to a prompt is seeded with `seed + i`.

    Each has a constraint of its own. `shown` are special tokens that appear in the text, with what they are there.
    """
    return [
        Request(
            id=f"{request_id}-{place * n + answer}",
            prompt=tuple(prompt),
            params=params if params.seed is None else replace(params, seed=_wrap(params.seed + answer)),
            adapter=adapter,
            tenant=tenant,
            constraint=None if constraint is None else constraint(),
            shown=shown,
        )
        for place, prompt in enumerate(prompts)
        for answer in range(n)
    ]


def check_tokens(ids: Sequence[int], vocab_size: int, field: str) -> None:
    if ids and max(ids) >= vocab_size:
        raise BadRequest(f"`{field}` has a token id outside the vocabulary; ids go from 0 to {vocab_size - 1}.", field)


def _wrap(seed: int) -> int:
    """A sum of seeds kept in 64 signed bits."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
