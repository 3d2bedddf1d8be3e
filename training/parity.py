"""The parity gate: does the server compute the same log-probabilities with the adapter as the trainer did?

Owns the comparison, its bounds and the text of a failure. Imports no torch: the trainer's side is computed in
training/reference_logprobs.py, the server's side behind training/serving.py.
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
"""Tokens of a row that are compared. Later ones cost time and show nothing new."""

BOUNDS = {"float32": 0.002, "float16": 0.02, "bfloat16": 0.15}
"""The largest mean difference in nats, by the coarser of the two precisions: the trainer's and the server's."""

QUANTIZED_BOUNDS = {"float32": 0.002, "float16": 0.04, "bfloat16": 0.25}
"""The same where both sides have the base in 4 bits. docs/training.md says how these were measured."""

WEAK_EFFECT = 4.0
"""In bounds: a smaller effect could be lost or doubled and still pass the bound, so its share is measured too."""
SHARE_TOLERANCE = 0.3
"""How far from 1 the share of a weak effect that reaches the server may be."""
MAX_STANDARD_ERROR = 0.1
"""With a larger standard error the share is too uncertain to be judged."""
GROUPS = 20
"""Groups of positions for the jackknife; with fewer positions than groups the share is not judged."""

Rows = tuple[tuple[int, ...], ...]
Logprobs = Sequence[Sequence[float]]


class TokenRow(Protocol):
    """The part of an example that is compared."""

    @property
    def ids(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class ReferenceLogprobs:
    """The trainer's side: log-probabilities in nats of each row's tokens 1.., with the adapter and without it.

    `precision` is that of the trainer's matrix products.
    """

    rows: Rows
    trained: Logprobs
    base: Logprobs
    precision: str = "float32"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's result. `complaint` is None where it passed; otherwise it says what differs and what to do."""

    parity: Parity
    complaint: str | None


def rows_of(heldout: Sequence[TokenRow], examples: int) -> Rows:
    """The first `examples` held-out rows, each cut at LONGEST. Rows of one token have nothing to compare."""
    comparable = (example.ids for example in heldout if len(example.ids) > 1)
    return tuple(tuple(ids[:LONGEST]) for ids in islice(comparable, examples))


def bound(dtype: str, quantization: str | None, trainer: str = "float32") -> float:
    """The largest allowed mean absolute difference in nats, for the server's `dtype` and the `trainer`'s."""
    bounds = BOUNDS if quantization is None else QUANTIZED_BOUNDS
    return max(bounds[dtype], bounds[trainer])


def compare(
    reference: ReferenceLogprobs, serving: ServingPath, adapter: Path, *, dtype: str, quantization: str | None
) -> Verdict:
    """Serve the rows of `reference` and compare. Loads the base: free the trainer's model first.

    Where the adapter changes so little that the bound would hide its loss, the change itself is compared too: the
    share of it that reaches the server, over all positions, so that rounding averages out.
    """
    assert reference.rows, "without rows there is nothing to compare"
    limit = bound(dtype, quantization, reference.precision)
    trained, base = _flat(reference.trained), _flat(reference.base)
    served = _flat(serving.logprobs(adapter, reference.rows, dtype=dtype, quantization=quantization))
    differences = [abs(a - b) for a, b in zip(trained, served, strict=True)]
    mean, largest = fmean(differences), max(differences)
    close, effect = mean <= limit, _distance(trained, base)
    if close and effect >= WEAK_EFFECT * limit:
        return Verdict(Parity(dtype, quantization, len(trained), mean, largest, limit, True, effect), None)
    served_base = _flat(serving.logprobs(None, reference.rows, dtype=dtype, quantization=quantization))
    share = effect_share(_minus(trained, base), _minus(served, served_base))
    passed = close and (share is None or abs(share - 1) <= SHARE_TOLERANCE)
    parity = Parity(dtype, quantization, len(trained), mean, largest, limit, passed, effect, share)
    return Verdict(parity, None if passed else _complaint(parity, _distance(base, served_base)))


def effect_share(trainer: Sequence[float], server: Sequence[float]) -> float | None:
    """The share of the adapter's effect in the trainer that is found in the server; None where noise leaves it open.

    Both arguments are the adapter's changes of log-probabilities, position by position. The share is the slope of
    orthogonal regression: both sides are rounded, and least squares, which takes `trainer` as exact, finds too little
    where rounding is as large as the effect (Deming, Statistical Adjustment of Data, 1943). Its standard error is the
    jackknife's over groups of neighbouring positions, whose errors have causes in common.
    """
    size = len(trainer) / GROUPS
    cuts = [round(size * n) for n in range(GROUPS + 1)]
    groups = [_products(trainer[start:end], server[start:end]) for start, end in pairwise(cuts)]
    total = [sum(column) for column in zip(*groups, strict=True)]
    if size < 1 or total[0] == 0:
        return None
    slopes = [_slope(*_minus(total, group)) for group in groups]
    middle = fmean(slopes)
    error = math.sqrt((GROUPS - 1) / GROUPS * sum((slope - middle) ** 2 for slope in slopes))
    return _slope(*total) if error <= MAX_STANDARD_ERROR else None


def _products(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """The sums of x^2, x y and y^2."""
    return sum(map(mul, x, x)), sum(map(mul, x, y)), sum(map(mul, y, y))


def _slope(xx: float, xy: float, yy: float) -> float:
    """The slope of the line through the origin with the least squared perpendicular distances to the points."""
    return math.tan(math.atan2(2 * xy, xx - yy) / 2)


def _complaint(parity: Parity, base_mean: float) -> str:
    """What to tell the user. `base_mean`: how far the served base alone is from the trainer's, in nats on average."""
    where = f"{parity.dtype}{f', {parity.quantization}' if parity.quantization else ''}"
    text = (
        f"The adapter behaves otherwise in the server ({where}) than in the trainer: its log-probabilities differ by "
        f"{parity.mean:.3g} nats on average, {parity.largest:.3g} at most, over {parity.positions} positions; "
        f"{parity.bound:.3g} on average is allowed. "
    )
    if parity.arrived is not None:
        text += f"Of what the adapter changes ({parity.effect:.3g} nats), {parity.arrived:.0%} arrives in the server. "
    if base_mean > parity.bound:
        return text + (
            f"The base without the adapter differs as well, by {base_mean:.3g} nats, so the base is served otherwise "
            "than it was trained on. Serve it in the trainer's precision (gate.dtype: float32 tells the two apart), "
            "with the quantization it was trained with, and check that `base` names the same weights."
        )
    return text + (
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
