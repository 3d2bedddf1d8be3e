"""The gate between trainer and server: does the adapter say in the serving path what it said in the trainer?

Owns the comparison, its bounds and what a failure tells. Imports no torch: the trainer's side is computed in
training/reference.py, the server's side behind training/serving.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from training.report import Parity
from training.serving import ServingPath

LONGEST = 512
"""Tokens of a row that are compared; later ones say nothing new and cost time."""

BOUNDS = {"float32": 0.005, "float16": 0.02, "bfloat16": 0.06}
"""The largest mean difference, in nats, by the precision that is served. docs/training.md says how they were found."""

QUANTIZED_BOUNDS = {"nf4": 0.06, "fp4": 0.06}
"""The same where trainer and server have the same 4-bit base; the larger of this and the precision's bound holds."""

Rows = tuple[tuple[int, ...], ...]
Logprobs = Sequence[Sequence[float]]


class Compared(Protocol):
    """An example of training/data, as far as it is looked at here."""

    @property
    def ids(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Reference:
    """The trainer's side: log-probabilities of each row's tokens 1.., with the adapter and without it."""

    rows: Rows
    trained: Logprobs
    base: Logprobs


@dataclass(frozen=True, slots=True)
class Verdict:
    """`complaint` is None where the gate is passed; otherwise it says what differs and what to do."""

    parity: Parity
    complaint: str | None


def rows_of(heldout: Sequence[Compared], examples: int) -> Rows:
    """The beginnings of the first held-out examples; rows of one token have nothing to compare."""
    return tuple(tuple(example.ids[:LONGEST]) for example in heldout[:examples] if len(example.ids) > 1)


def bound(dtype: str, quantization: str | None) -> float:
    """How far the serving path may be from the trainer, as the mean of absolute differences in nats."""
    return max(BOUNDS[dtype], QUANTIZED_BOUNDS.get(quantization or "", 0.0))


def compare(
    reference: Reference, serving: ServingPath, adapter: Path, *, dtype: str, quantization: str | None
) -> Verdict:
    """Serve the rows and compare. Call it after the trainer's model is gone: the base is loaded here."""
    served = serving.logprobs(adapter, reference.rows, dtype=dtype, quantization=quantization)
    differences = list(_differences(reference.trained, served))
    effect = _mean(list(_differences(reference.trained, reference.base)))
    limit, mean = bound(dtype, quantization), _mean(differences)
    parity = Parity(
        dtype=dtype,
        quantization=quantization,
        positions=len(differences),
        mean=mean,
        largest=max(differences, default=0.0),
        bound=limit,
        passed=mean <= limit,
        effect=effect,
    )
    if parity.passed:
        return Verdict(parity, None)
    base = serving.logprobs(None, reference.rows, dtype=dtype, quantization=quantization)
    return Verdict(parity, _complaint(parity, _mean(list(_differences(reference.base, base)))))


def _complaint(parity: Parity, base_mean: float) -> str:
    """Where the difference comes from is told by the base alone, served and in the trainer."""
    where = f"{parity.dtype}{f', {parity.quantization}' if parity.quantization else ''}"
    told = (
        f"The adapter behaves otherwise in the server ({where}) than in the trainer: its log-probabilities differ by "
        f"{parity.mean:.3g} nats on average, {parity.largest:.3g} at most, over {parity.positions} positions; "
        f"{parity.bound:.3g} on average is allowed. "
    )
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


def _differences(one: Logprobs, other: Logprobs) -> Iterator[float]:
    for left, right in zip(one, other, strict=True):
        for a, b in zip(left, right, strict=True):
            yield abs(a - b)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
