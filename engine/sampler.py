"""From logits to tokens, for many requests with different wishes in one batch.

Owns penalties, bias, constraints' masks, filters, the draw, and log-probabilities. Knows sequences, not models. Each
row depends on its own logits and request only.

Shape suffixes: S rows to sample, V vocabulary.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from hashlib import blake2b
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import ConstraintFailed
from engine.result import ChunkResult
from engine.sequence import SamplingParams, Sequence, TokenLogprob

COLDEST = 1e-6  # below this only the best token is left, and dividing by less overflows


def sample(logits_SV: Tensor, sequences: Seq[Sequence], eos: Collection[int]) -> list[ChunkResult]:
    """Choose one token per row from float32 logits. A row without a finite maximum fails alone, and so does one whose
    constraint fails.
    """
    tokens = _best(logits_SV)
    largest_S = logits_SV[range(len(tokens)), tokens]  # NaN where there is one, for to an argmax it is the largest
    failed = {row: ChunkResult(finite=False) for row, ok in enumerate(largest_S.isfinite().tolist()) if not ok}
    reports = _reports(logits_SV, sequences)
    adjusts = [_adjusts(s, eos) for s in sequences]
    likeliest = {row: tokens[row] for row, s in enumerate(sequences) if not (adjusts[row] or s.params.temperature)}
    allowed, stuck = _allowed(sequences, logits_SV, failed, likeliest)
    failed |= stuck
    adjusted = logits_SV
    if allowed or any(adjusts):
        adjusted = logits_SV.clone()
        for row, sequence in enumerate(sequences):
            _adjust(adjusted[row], sequence, eos)
        for row, allowed_V in allowed.items():
            _constrain(adjusted[row], allowed_V)
        tokens = _best(adjusted)
    for row, sequence in enumerate(sequences):
        if row not in failed and sequence.params.temperature > 0:
            tokens[row] = _draw(adjusted[row], sequence)
    return [
        failed.get(row) or ChunkResult(token=token, logprob=report(token) if report else None)
        for row, (token, report) in enumerate(zip(tokens, reports, strict=True))
    ]


def _allowed(
    sequences: Seq[Sequence], like_SV: Tensor, failed: Collection[int], likeliest: Mapping[int, int]
) -> tuple[dict[int, Tensor], dict[int, ChunkResult]]:
    """`[V]`, true where a token may come next, for each row that has a constraint, and the rows whose failed.

    Not for a row that takes its `likeliest` token, where that may come: nothing has to be ruled out, which costs a few
    passes over the logits. A model that was told what to write mostly does.
    """
    allowed: dict[int, Tensor] = {}
    stuck: dict[int, ChunkResult] = {}
    for row, sequence in enumerate(sequences):
        if sequence.constraint is None or row in failed:
            continue
        try:
            bits = np.frombuffer(sequence.constraint.allowed(), np.uint8)
        except ConstraintFailed:
            stuck[row] = ChunkResult(stuck=True)
            continue
        if row in likeliest and _has(bits, likeliest[row]):
            continue
        flags_V = np.unpackbits(bits, count=like_SV.shape[1], bitorder="little").view(np.bool_)
        assert flags_V.any(), "a constraint that leaves nothing says that it failed"
        allowed[row] = torch.from_numpy(flags_V).to(like_SV.device)
    return allowed, stuck


def _has(bits: NDArray[np.uint8], token: int) -> bool:
    """Whether a mask, which may be shorter than the vocabulary, allows a token."""
    return token // 8 < len(bits) and bool(bits[token // 8] >> token % 8 & 1)


def _constrain(row_V: Tensor, allowed_V: Tensor) -> None:
    """Rule out all but the allowed tokens, in place. Of these some are left even if the model rules out all of them."""
    row_V.clamp_(min=torch.finfo(row_V.dtype).min)
    row_V.masked_fill_(~allowed_V, float("-inf"))


def _best(logits_SV: Tensor) -> list[int]:
    """The likeliest token of each row. numpy's argmax is vectorised, torch's own on a CPU takes ten times as long."""
    tokens = logits_SV.numpy().argmax(-1) if logits_SV.is_cpu else logits_SV.argmax(-1)
    return cast(list[int], tokens.tolist())


class Report:
    """The log-probabilities of one row, asked for one token."""

    def __init__(self, logprobs_V: Tensor, alternatives: int) -> None:
        self._logprobs_V = logprobs_V
        best = logprobs_V.topk(min(alternatives, logprobs_V.numel()))
        self._top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def __call__(self, token: int) -> TokenLogprob:
        return TokenLogprob(token, float(self._logprobs_V[token]), self._top)


def report_prompt(logits_PV: Tensor, tokens: Seq[int], alternatives: int) -> tuple[TokenLogprob, ...]:
    """`log p(tokens[i])` by row i's logits, with the most likely alternatives of each."""
    return tuple(
        Report(row.float().log_softmax(-1), alternatives)(token) for row, token in zip(logits_PV, tokens, strict=True)
    )


def uniform(stream: int, draw: int) -> float:
    """The `draw`-th number in [0, 1) of a request's stream: a hash of both, so that no draw has a past to replay."""
    digest = blake2b(f"{stream}:{draw}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _reports(logits_SV: Tensor, sequences: Seq[Sequence]) -> list[Report | None]:
    """Log-probabilities before any adjustment, for the rows that asked."""
    return [
        None if s.params.logprobs is None else Report(logits_SV[row].log_softmax(-1), s.params.logprobs)
        for row, s in enumerate(sequences)
    ]


def _adjusts(sequence: Sequence, eos: Collection[int]) -> bool:
    p = sequence.params
    penalised = p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1.0
    return bool(penalised or p.logit_bias or _forbidden(sequence, eos))


def _forbidden(sequence: Sequence, eos: Collection[int]) -> list[int]:
    """Tokens that would end the sequence before its `min_tokens`."""
    if sequence.num_generated >= sequence.params.min_tokens:
        return []
    return [*eos, *sequence.params.stop_token_ids]


def _adjust(row_V: Tensor, sequence: Sequence, eos: Collection[int]) -> None:
    """Penalties, then bias, then what is forbidden, in place.

    Repetition (arXiv 1909.05858): logits of tokens seen in prompt or output are divided by it if positive, else
    multiplied. Presence and frequency (OpenAI): `logit -= presence + frequency * count`, output tokens only.
    """
    p = sequence.params
    if p.repetition_penalty != 1.0:
        seen = _ids(set(sequence.tokens), row_V)
        values = row_V[seen]
        row_V[seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
    if p.presence_penalty or p.frequency_penalty:
        counts = Counter(sequence.tokens[sequence.prompt_len :])
        if counts:
            penalty = p.presence_penalty + p.frequency_penalty * torch.tensor(list(counts.values()), dtype=row_V.dtype)
            row_V[_ids(counts, row_V)] -= penalty.to(row_V.device)
    if p.logit_bias:
        row_V[_ids(p.logit_bias, row_V)] += torch.tensor(list(p.logit_bias.values()), dtype=row_V.dtype).to(
            row_V.device
        )
    forbidden = _forbidden(sequence, eos)
    if forbidden:
        row_V[_ids(forbidden, row_V)] = float("-inf")


def _ids(tokens: Collection[int], like: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.long, device=like.device)


def _draw(row_V: Tensor, sequence: Sequence) -> int:
    """Invert the cumulative distribution at the request's next random number."""
    scaled_V = (row_V - row_V.max()) / max(sequence.params.temperature, COLDEST)
    probs_V, order = _filtered(scaled_V, sequence.params)
    cumulative = probs_V.double().cumsum(-1)
    at = uniform(sequence.stream, sequence.num_generated) * float(cumulative[-1])
    index = int(torch.searchsorted(cumulative, at, right=True))
    if index == probs_V.numel():  # rounded up to the sum: the last token that adds to it
        index = int(torch.searchsorted(cumulative, cumulative[-1]))
    return index if order is None else int(order[index])


def _filtered(scaled_V: Tensor, p: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """Probabilities after top-k, top-p and min-p, in that order, and whose they are (None: every token's, by id)."""
    if not p.top_k and p.top_p >= 1.0 and p.min_p <= 0.0:
        return scaled_V.softmax(-1), None
    values, order = scaled_V.topk(p.top_k) if 0 < p.top_k < scaled_V.numel() else scaled_V.sort(descending=True)
    probs = values.softmax(-1)
    keep = torch.ones_like(probs, dtype=torch.bool)
    if p.top_p < 1.0:
        keep &= probs.cumsum(-1) - probs < p.top_p  # the first token past top_p still belongs to the nucleus
    if p.min_p > 0.0:
        keep &= probs >= p.min_p * probs[0]
    keep[0] = True
    return torch.where(keep, probs, 0), order
