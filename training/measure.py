"""What the base could do before, and what the trained model can do: loss on held-out and general text, task score.

Owns the two looks and their comparison. Knows nothing of how the model is trained or saved.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from training import launched
from training.base import Loaded
from training.config import TrainConfig
from training.data.examples import Example, Prepared
from training.general import general_loss
from training.loss import mean_loss
from training.report import BeforeAfter, Sample
from training.score import Answer, ask, samples, task_score


@dataclass(frozen=True, slots=True)
class Look:
    """One model's figures. Losses are nats per counted token; None and empty: there was nothing to measure."""

    heldout_loss: float | None = None
    general_loss: float | None = None
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both models' figures, as the report has them."""

    heldout_loss: BeforeAfter | None
    general_loss: BeforeAfter | None
    task_score: BeforeAfter | None
    samples: tuple[Sample, ...]


def look(model: nn.Module, loaded: Loaded, prepared: Prepared, config: TrainConfig) -> Look:
    """Measure `model` as it is. A reward model writes no text, so there is nothing to measure here."""
    if config.objective == "reward":
        return Look()
    heldout = [example for example in prepared.heldout.examples if isinstance(example, Example)]
    with torch.autocast(loaded.device.type, torch.bfloat16, enabled=loaded.autocast):
        return Look(
            heldout_loss=mean_loss(model, heldout),
            general_loss=general_loss(model, loaded.tokenizer),
            answers=ask(model, loaded.tokenizer, heldout, config.score) if config.score and heldout else (),
        )


def look_at_base(model: nn.Module, note: Path, measure: Callable[[nn.Module], Look]) -> Look:
    """The base's figures before it is trained, from `note` if they were taken before an interruption."""
    if note.exists():
        written = json.loads(note.read_text(encoding="utf-8"))
        return Look(**{**written, "answers": tuple(Answer(**answer) for answer in written["answers"])})
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        found = measure(model)
    if launched.is_first():
        scratch = note.with_suffix(".new")
        scratch.write_text(json.dumps(asdict(found)), encoding="utf-8")
        scratch.replace(note)
    return found


def compared(base: Look, trained: Look) -> Comparison:
    """Base and trained side by side; None where either was not measured."""
    return Comparison(
        heldout_loss=_both(base.heldout_loss, trained.heldout_loss),
        general_loss=_both(base.general_loss, trained.general_loss),
        task_score=task_score(base.answers, trained.answers),
        samples=samples(base.answers, trained.answers),
    )


def _both(base: float | None, trained: float | None) -> BeforeAfter | None:
    return None if base is None or trained is None else BeforeAfter(base, trained)
