"""The base before training against the trained model: loss on held-out and general text, and the task score.

Owns the two evaluations and their comparison. Knows nothing of how the model is trained or saved.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from training import launcher
from training.atomic import write_atomically
from training.base import LoadedBase
from training.config import TrainConfig
from training.data.examples import Example, Prepared
from training.general_text import general_loss
from training.loss import mean_loss
from training.report import BeforeAfter, Sample
from training.score import Answer, answer_heldout, samples, task_score


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model's figures. Losses are nats per counted token; None or empty where there was nothing to measure."""

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


def evaluate(model: nn.Module, loaded: LoadedBase, prepared: Prepared, config: TrainConfig) -> Evaluation:
    """Evaluate `model` as it is. Empty for a reward model, which writes no text."""
    if config.objective == "reward":
        return Evaluation()
    heldout = [example for example in prepared.heldout.examples if isinstance(example, Example)]
    with torch.autocast(loaded.device.type, torch.bfloat16, enabled=loaded.autocast):
        return Evaluation(
            heldout_loss=mean_loss(model, heldout),
            general_loss=general_loss(model, loaded.tokenizer),
            answers=answer_heldout(model, loaded.tokenizer, heldout, config.score) if config.score and heldout else (),
        )


def evaluate_base(model: nn.Module, saved: Path, evaluate: Callable[[nn.Module], Evaluation]) -> Evaluation:
    """The base's figures before training. Read from the JSON file `saved` where an interrupted run wrote them."""
    if saved.exists():
        values = json.loads(saved.read_text(encoding="utf-8"))
        return Evaluation(**{**values, "answers": tuple(Answer(**answer) for answer in values["answers"])})
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        found = evaluate(model)
    if launcher.is_main_process():
        write_atomically(saved, json.dumps(asdict(found)))
    return found


def compare(base: Evaluation, trained: Evaluation) -> Comparison:
    """Base and trained side by side; None where either was not measured."""
    return Comparison(
        heldout_loss=_both(base.heldout_loss, trained.heldout_loss),
        general_loss=_both(base.general_loss, trained.general_loss),
        task_score=task_score(base.answers, trained.answers),
        samples=samples(base.answers, trained.answers),
    )


def _both(base: float | None, trained: float | None) -> BeforeAfter | None:
    return None if base is None or trained is None else BeforeAfter(base, trained)
