"""What happens beside the trainer's steps: figures are recorded and shown, checkpoints sealed, the best weights kept.

Owns the callback that every trainer gets, and the rule of when to stop early. Draws nothing itself.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.errors import TrainingError
from training.peak import peak_bytes
from training.trainers.weights import keep
from training.watch import Metrics, Step, Watch

SEALED = "sealed"
"""A file of this name in a checkpoint says that the checkpoint is whole."""
SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "kl": "kl",
    "rewards/accuracies": "accuracy",
    "accuracy": "accuracy",
    "rewards/margins": "margin",
    "margin": "margin",
    "completions/mean_length": "answer tokens",
}
"""The figures of a step that are drawn, by the trainers' names."""


class Recorder(TrainerCallback):
    """Writes metrics.jsonl, feeds the watch, seals checkpoints, keeps the best weights and stops early.

    All it knows of the past it reads from the trainer's own history, so a resumed run decides as an unbroken one.
    """

    def __init__(self, folder: Path, watch: Watch, patience: int | None, judge: str, larger_is_better: bool) -> None:
        self._metrics = Metrics(folder / "metrics.jsonl")
        self._best = folder / "best.safetensors"
        self._watch = watch
        self._patience = patience
        self._judge, self._sign = judge, -1.0 if larger_is_better else 1.0
        self._began = 0.0
        self._tokens_before = self._seconds_before = self._counted_before = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._metrics.rewind(state.global_step)
        last = next((record for record in reversed(list(self._metrics.records())) if "tokens" in record), {})
        self._tokens_before, self._seconds_before = last.get("tokens", 0.0), last.get("seconds", 0.0)
        # Some trainers count on from the checkpoint, others from nothing.
        self._counted_before = float(state.num_input_tokens_seen)
        self._began = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "loss" in figures:
            self._stepped(state, figures)
        elif self._judge in figures and state.is_world_process_zero:
            figures.pop("num_tokens", None)
            self._metrics.append({"step": state.global_step, **figures})
            self._watch.evaluated(state.global_step, self._told(figures))

    def _told(self, figures: Mapping[str, float]) -> dict[str, float]:
        """What is drawn of an evaluation. A loss that does not decide which was best says nothing by itself."""
        shown = {told: figures[f"eval_{name}"] for name, told in SHOWN.items() if f"eval_{name}" in figures}
        if self._judge != "eval_loss":
            shown.pop("loss", None)
        return shown

    def _stepped(self, state: TrainerState, figures: dict[str, float]) -> None:
        if not math.isfinite(figures["loss"]):
            fix = "Lower optimizer.learning_rate, or raise optimizer.warmup."
            raise TrainingError(f"The loss is {figures['loss']} at step {state.global_step}. {fix}")
        if not state.is_world_process_zero:
            return
        seconds = time.monotonic() - self._began
        new = figures.pop("num_tokens", self._counted_before) - self._counted_before
        memory = peak_bytes()
        record = {"step": state.global_step, **figures, "tokens": self._tokens_before + new}
        self._metrics.append({**record, "seconds": self._seconds_before + seconds, "memory_bytes": memory})
        shown = {told: figures[name] for name, told in SHOWN.items() if name in figures}
        self._watch.step(Step(state.global_step, state.max_steps, shown, new / seconds, memory))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        marks = [self._sign * entry[self._judge] for entry in state.log_history if self._judge in entry]
        if not marks or model is None:
            return
        if is_best(marks) and state.is_world_process_zero:
            keep(model, self._best)
        if is_enough(marks, self._patience):
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and args.output_dir is not None:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            # A pickle that nobody here reads, so nobody shall.
            (checkpoint / "training_args.bin").unlink(missing_ok=True)
            (checkpoint / SEALED).touch()


def is_best(marks: Sequence[float]) -> bool:
    """Whether the last of some marks, of which less is better, is below all others."""
    return all(marks[-1] < mark for mark in marks[:-1])


def is_enough(marks: Sequence[float], patience: int | None) -> bool:
    """Whether so many evaluations in a row have brought nothing better."""
    return patience is not None and len(marks) - 1 - marks.index(min(marks)) >= patience


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint; a kill leaves others."""
    sealed = [path.parent for path in folder.glob(f"checkpoint-*/{SEALED}")]
    return max(sealed, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def totals(records: Sequence[Mapping[str, float]]) -> tuple[int, float]:
    """Tokens and seconds of a whole run, from its metrics, pauses left out."""
    last = next((record for record in reversed(records) if "tokens" in record), {})
    return int(last.get("tokens", 0)), last.get("seconds", 0.0)
