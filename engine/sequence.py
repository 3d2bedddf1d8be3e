"""A request inside the engine: what was asked, and how far it has come.

Owns `Sequence`, the one object that carries a request's state. Knows neither torch nor HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from adapters.manifest import AdapterId
from engine.constraint import Constraint
from engine.detokenize import TextStream


class FinishReason(StrEnum):
    """Why a sequence ended. Every accepted request ends with exactly one of these."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Status(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; names and defaults are OpenAI's, then vLLM's extensions.

    `top_k = 0` and `min_p = 0` switch those filters off. `logprobs` and `prompt_logprobs` are the number of
    alternatives to report beside each token's own log-probability; None reports nothing.
    `seed` fixes the request's random stream, which depends on nothing else in its batch.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What the server hands to the engine. `max_tokens = 0` only makes sense with `prompt_logprobs` (echo).

    `constraint` is this request's own, and decides where it ends: it goes with neither `min_tokens` nor `ignore_eos`.
    `shown` are special tokens that appear in its text, which has none otherwise, each with what it is there.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    adapter: AdapterId | None = None
    tenant: str = ""
    constraint: Constraint | None = None
    shown: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """`log p(token_id | everything before it)` and the `top` alternatives as (token id, log-probability), best first.

    Computed from the model's logits before penalties, bias, constraint and temperature, as OpenAI and vLLM report them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Admission:
    """How a sequence came into the batch, for response headers and metrics.

    `tier` is where its adapter was found: `base`, `device`, `host`, `disk` or `merged`.
    """

    tier: str
    queue_s: float
    load_s: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Output:
    """One increment. `admission` and `prompt_logprobs` come with the first, `finish_reason` with the last.

    `text` never splits a character and never shows any part of a stop string. `prompt_logprobs` has one entry
    per prompt token, None for the first. `stop_reason` is the stop string or token id that ended the sequence.
    With finish reason `error`, `error` says what happened and `error_code` names it: `adapter_corrupt`,
    `adapter_unavailable`, `adapter_overflow`, `non_finite_logits`, `constraint_failed`, `step_failed` or
    `engine_failed`; with `abort` there may be `reader_too_slow`.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    admission: Admission | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    error_code: str | None = None


@dataclass(slots=True)
class Sequence:
    """The state of one request. It neither "prefills" nor "decodes": `num_computed` catches up with `len(tokens)`."""

    request: Request
    arrived: float
    tokens: list[int]
    text: TextStream
    stream: int  # the seed of its random draws; each draw depends on it and on how many came before
    found_at: str = "base"  # the tier its adapter was in on arrival
    num_computed: int = 0
    num_charged: int = 0  # its tenant has paid for these; a preempted sequence is computed again, and not charged again
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    status: Status = Status.WAITING
    admission: Admission | None = None
    announced: bool = False  # whether its first output, which carries the admission, has gone out
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    last_token_at: float | None = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def adapter(self) -> AdapterId | None:
        return self.request.adapter

    @property
    def tenant(self) -> str:
        return self.request.tenant

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def constraint(self) -> Constraint | None:
        return self.request.constraint

    @property
    def is_running(self) -> bool:
        return self.status is Status.RUNNING

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def remaining(self) -> int:
        """Tokens whose keys and values are not in the cache yet."""
        return len(self.tokens) - self.num_computed
