"""The gate between trainer and server: does the adapter say in the serving path what it said in the trainer?

Owns the comparison, its bounds and what a failure tells. Imports no torch: the trainer's side is computed in
training/reference.py, the server's side behind training/serving.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from operator import mul
from pathlib import Path
from statistics import fmean
from typing import Protocol

from training.report import Parity
from training.serving import ServingPath

LONGEST = 512
"""Tokens of a row that are compared; later ones say nothing new and cost time."""

BOUNDS = {"float32": 0.002, "float16": 0.02, "bfloat16": 0.15}
"""The largest mean difference in nats, by the coarser of the two precisions: the trainer's and the server's."""

QUANTIZED_BOUNDS = {"float32": 0.002, "float16": 0.04, "bfloat16": 0.25}
"""The same where both sides have the base in 4 bits. docs/training.md says how these were measured."""

WEAK = 4.0
"""An effect below so many bounds could be lost or doubled within the bound; then it is looked for by itself."""
ARRIVED = 0.3
"""How far from 1 the share of a weak effect that arrives may be."""
CERTAIN = 0.1
"""Above this standard error, that share tells nothing and is not judged."""
GROUPS = 20
"""Groups of positions from which the standard error is found; with fewer positions the share is not judged."""

Rows = tuple[tuple[int, ...], ...]
Logprobs = Sequence[Sequence[float]]


class Compared(Protocol):
    """An example of training/data, as far as it is looked at here."""

    @property
    def ids(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Reference:
    """The trainer's side: log-probabilities of each row's tokens 1.., with the adapter and without it.

    `precision` is the one that the trainer multiplied in.
    """

    rows: Rows
    trained: Logprobs
    base: Logprobs
    precision: str = "float32"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`complaint` is None where the gate is passed; otherwise it says what differs and what to do."""

    parity: Parity
    complaint: str | None


def rows_of(heldout: Sequence[Compared], examples: int) -> Rows:
    """The beginnings of the first held-out examples; those of one token have nothing to compare."""
    comparable = (example.ids for example in heldout if len(example.ids) > 1)
    return tuple(tuple(ids[:LONGEST]) for ids in islice(comparable, examples))


def bound(dtype: str, quantization: str | None, trainer: str = "float32") -> float:
    """How far the serving path may be from the trainer, as the mean of absolute differences in nats."""
    bounds = BOUNDS if quantization is None else QUANTIZED_BOUNDS
    return max(bounds[dtype], bounds[trainer])


def compare(
    reference: Reference, serving: ServingPath, adapter: Path, *, dtype: str, quantization: str | None
) -> Verdict:
    """Serve the rows and compare. Call it after the trainer's model is gone: the base is loaded here.

    Where the adapter changes so little that the bound would hide its loss, the change itself is compared: the share
    of it that arrives in the server, over all positions, so that rounding averages out.
    """
    assert reference.rows, "without rows nothing would be shown"
    limit = bound(dtype, quantization, reference.precision)
    trained, there = _flat(reference.trained), _flat(reference.base)
    served = _flat(serving.logprobs(adapter, reference.rows, dtype=dtype, quantization=quantization))
    differences = [abs(a - b) for a, b in zip(trained, served, strict=True)]
    mean, largest = fmean(differences), max(differences)
    close, effect = mean <= limit, _distance(trained, there)
    if close and effect >= WEAK * limit:
        return Verdict(Parity(dtype, quantization, len(trained), mean, largest, limit, True, effect), None)
    here = _flat(serving.logprobs(None, reference.rows, dtype=dtype, quantization=quantization))
    share = arrived(_minus(trained, there), _minus(served, here))
    passed = close and (share is None or abs(share - 1) <= ARRIVED)
    parity = Parity(dtype, quantization, len(trained), mean, largest, limit, passed, effect, share)
    return Verdict(parity, None if passed else _complaint(parity, _distance(there, here)))


def arrived(there: Sequence[float], here: Sequence[float]) -> float | None:
    """The share of the changes `there` that is found in the changes `here`; None where noise leaves it open.

    The slope of orthogonal regression: both sides are rounded, and least squares, which takes `there` as exact, finds
    too little where rounding is as large as the effect (Deming, Statistical Adjustment of Data, 1943). Its standard
    error is the jackknife's over groups of neighbouring positions, whose errors have causes in common.
    """
    size = len(there) / GROUPS
    cuts = [round(size * n) for n in range(GROUPS + 1)]
    groups = [_products(there[start:end], here[start:end]) for start, end in pairwise(cuts)]
    total = [sum(column) for column in zip(*groups, strict=True)]
    if size < 1 or total[0] == 0:
        return None
    slopes = [_slope(*_minus(total, group)) for group in groups]
    middle = fmean(slopes)
    error = math.sqrt((GROUPS - 1) / GROUPS * sum((slope - middle) ** 2 for slope in slopes))
    return _slope(*total) if error <= CERTAIN else None


def _products(there: Sequence[float], here: Sequence[float]) -> tuple[float, float, float]:
    """The sums of there^2, there here and here^2."""
    return sum(map(mul, there, there)), sum(map(mul, there, here)), sum(map(mul, here, here))


def _slope(there2: float, both: float, here2: float) -> float:
    """Of the line through the origin with the least squared distances to the points, taken at right angles to it."""
    return math.tan(math.atan2(2 * both, there2 - here2) / 2)


def _complaint(parity: Parity, base_mean: float) -> str:
    """Where the difference comes from is told by the base alone, served and in the trainer."""
    where = f"{parity.dtype}{f', {parity.quantization}' if parity.quantization else ''}"
    told = (
        f"The adapter behaves otherwise in the server ({where}) than in the trainer: its log-probabilities differ by "
        f"{parity.mean:.3g} nats on average, {parity.largest:.3g} at most, over {parity.positions} positions; "
        f"{parity.bound:.3g} on average is allowed. "
    )
    if parity.arrived is not None:
        told += f"Of what the adapter changes ({parity.effect:.3g} nats), {parity.arrived:.0%} arrives in the server. "
    if base_mean > parity.bound:
        return told + (
            f"The base without the adapter differs as well, by {base_mean:.3g} nats, so the base is served otherwise "
            "than it was trained on. Serve it in the trainer's precision (gate.dtype: float32 tells the two apart), "
            "with the quantization it was trained with, and check that `base` names the same weights."
        )
    return told + (
        f"The base without the adapter agrees ({base_mean:.3g} nats), so it is the adapter: what was exported is not "
        "what was trained, or the serving path computes it otherwise. Do not serve it. Run `rootstock validate` on "
        "the folder, train again with gate.dtype: float32 to rule out rounding, and report it with the folder."
    )


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return fmean([abs(a - b) for a, b in zip(one, other, strict=True)])


def _flat(rows: Logprobs) -> list[float]:
    return [value for row in rows for value in row]


def _minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]
