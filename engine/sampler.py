"""From logits to tokens, for many requests with different wishes in one batch.

Owns penalties, bias, constraints' masks and log-probabilities; the draw is `draws.py`'s. Knows sequences, not models.
Each row depends on its own logits and request only.

Shape suffixes: S rows to sample, C of them that are constrained, V vocabulary.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from itertools import compress
from math import inf, isfinite
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.draws import draw
from engine.errors import ConstraintFailed
from engine.result import ChunkResult
from engine.sequence import Sequence, TokenLogprob


def sample(logits_SV: Tensor, sequences: Seq[Sequence], eos: Collection[int]) -> list[ChunkResult]:
    """Choose one token per row from float32 logits. A row without a finite maximum, as the model gave it or after
    penalties and bias, fails alone, and so does one whose constraint fails.
    """
    tokens, not_finite = _best(logits_SV)
    failed = {row: ChunkResult(finite=False) for row in not_finite}
    reports = _reports(logits_SV, sequences)
    adjusts = [_adjusts(s, eos) for s in sequences]
    likeliest = {row: tokens[row] for row, s in enumerate(sequences) if not (adjusts[row] or s.params.temperature)}
    allowed, stuck = _allowed(sequences, failed, likeliest)
    failed |= stuck
    adjusted = logits_SV
    if any(adjusts):
        adjusted = logits_SV.clone()
        for row in compress(range(len(tokens)), adjusts):
            _adjust(adjusted[row], sequences[row], eos)
    if allowed:
        adjusted = _constrained(adjusted, allowed)
    if adjusted is not logits_SV:
        tokens, not_finite = _best(adjusted)
        failed = {row: ChunkResult(finite=False) for row in not_finite} | failed
    warm = [row for row, s in enumerate(sequences) if row not in failed and s.params.temperature > 0]
    if warm:
        rows = adjusted if len(warm) == len(tokens) else adjusted[warm]
        for row, token in zip(warm, draw(rows, [sequences[row] for row in warm]), strict=True):
            tokens[row] = token
    return [
        failed.get(row) or ChunkResult(token=token, logprob=report(token) if report else None)
        for row, (token, report) in enumerate(zip(tokens, reports, strict=True))
    ]


def _allowed(
    sequences: Seq[Sequence], failed: Collection[int], likeliest: Mapping[int, int]
) -> tuple[dict[int, NDArray[np.uint8]], dict[int, ChunkResult]]:
    """What may come next, as a constraint tells it, for each row that has one, and the rows whose failed.

    Not for a row that takes its `likeliest` token, where that may come: nothing has to be ruled out, which costs a few
    passes over the logits. A model that was told what to write mostly does.
    """
    allowed: dict[int, NDArray[np.uint8]] = {}
    stuck: dict[int, ChunkResult] = {}
    for row, sequence in enumerate(sequences):
        if sequence.constraint is None or row in failed:
            continue
        try:
            bits = np.frombuffer(sequence.constraint.allowed(), np.uint8)
        except ConstraintFailed:
            stuck[row] = ChunkResult(stuck=True)
            continue
        assert bits.any(), "a constraint that leaves nothing says that it failed"
        if not (row in likeliest and _has(bits, likeliest[row])):
            allowed[row] = bits
    return allowed, stuck


def _has(bits: NDArray[np.uint8], token: int) -> bool:
    """Whether a mask, which may be shorter than the vocabulary, allows a token."""
    return token // 8 < len(bits) and bool(bits[token // 8] >> token % 8 & 1)


def _constrained(logits_SV: Tensor, allowed: Mapping[int, NDArray[np.uint8]]) -> Tensor:
    """The logits without the tokens that may not come. Where all others are ruled out as well, those are alike.

    Bits become numbers that are added by a table of all bytes: a tenth of what filling by a mask of bools takes.
    """
    rows, size = list(allowed), logits_SV.shape[1]
    bytes_CB = np.zeros((len(rows), -(-size // 8)), np.uint8)
    for bits, own in zip(allowed.values(), bytes_CB, strict=True):
        own[: len(bits)] = bits[: len(own)]  # which may be for fewer tokens than there are, or for more
    indices = torch.from_numpy(bytes_CB).to(logits_SV.device).flatten().int()
    plus_CV = _PLUS_OF_BYTE.to(logits_SV.device).index_select(0, indices).view(len(rows), -1)[:, :size]
    left_CV = (logits_SV if len(rows) == len(logits_SV) else logits_SV[rows]) + plus_CV
    none_C1 = left_CV.amax(-1, keepdim=True) == -inf
    if none_C1.any():
        left_CV = left_CV.where(~none_C1, plus_CV)
    return left_CV if len(rows) == len(logits_SV) else logits_SV.index_copy(0, _ids(rows, logits_SV), left_CV)


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_PLUS_OF_BYTE = torch.from_numpy(np.where(_BITS, np.float32(0), np.float32(-inf)))
"""For each byte of a constraint's bits `[256, 8]` what is added to its tokens' logits: 0 where one may come."""


def _best(logits_SV: Tensor) -> tuple[list[int], list[int]]:
    """The likeliest token of each row, and the rows whose largest logit is not finite.

    A NaN is the largest to an argmax. numpy's is vectorised, torch's own on a CPU takes ten times as long.
    """
    if logits_SV.is_cpu:
        array_SV = logits_SV.numpy()
        tokens = cast(list[int], array_SV.argmax(-1).tolist())
        values = [array_SV[row, token] for row, token in enumerate(tokens)]
    else:
        best_S = logits_SV.argmax(-1)
        values, tokens = logits_SV.gather(1, best_S[:, None])[:, 0].tolist(), best_S.tolist()
    return tokens, [row for row, value in enumerate(values) if not isfinite(value)]


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
        row_V[_ids(forbidden, row_V)] = -inf


def _ids(tokens: Collection[int], like: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.long, device=like.device)
