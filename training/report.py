"""The figures of a finished run, as they go into the card and report.json.

Owns that frozen data. Computes nothing, so that every part of a run can import it. Losses are nats per counted token,
scores are shares from 0 to 1, sizes are bytes. None means not measured, and the card says so.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """One figure of the base before training, and of the trained model."""

    base: float
    trained: float


@dataclass(frozen=True, slots=True)
class DataUsed:
    """One data file: its digest, its examples, their tokens, and how many were cut at `max_tokens`."""

    path: str
    sha256: str
    examples: int
    tokens: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Parity:
    """The server against the trainer: absolute differences of log-probabilities over held-out positions, in nats.

    The gate passes if `mean` is at most `bound`. `effect` is how far the adapter itself moves log-probabilities in the
    trainer, on average. Where that is not far above the bound, `arrived` is the share of the effect that was found in
    the server; None where it was not needed, or could not be told from rounding.
    """

    dtype: str
    quantization: str | None
    positions: int
    mean: float
    largest: float
    bound: float
    passed: bool
    effect: float = 0.0
    arrived: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out prompt as the model saw it, the answer in the data, and the answers of base and trained model."""

    prompt: str
    expected: str
    base: str
    trained: str
    right: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A run's figures. `base_weights` and `quantization` are the base's fingerprint (loader/fingerprint.py)."""

    method: str
    objective: str
    base: str
    base_weights: str
    quantization: str | None
    precision: str
    device: str
    data: tuple[DataUsed, ...]
    steps: int
    tokens: int
    seconds: float
    trainable: int
    bytes: int
    predicted_bytes: int
    measured_bytes: int
    heldout_loss: BeforeAfter | None
    task_score: BeforeAfter | None
    general_loss: BeforeAfter | None
    parity: Parity | None
    metrics: dict[str, float]
    samples: tuple[Sample, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
