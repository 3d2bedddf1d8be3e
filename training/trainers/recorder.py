"""The callback of every trainer: it records and reports figures, seals checkpoints and saves the best weights.

Owns that callback and the rule of early stopping. Displays nothing itself.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.errors import TrainingError
from training.metrics_file import MetricsFile
from training.observer import Observer, Step
from training.peak_memory import peak_bytes
from training.trainers.weights import save_trainable

SEALED = "sealed"
"""An empty file of this name marks a checkpoint as complete."""
BEST = "best.safetensors"
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
"""The figures that are shown to the user, by trl's names and by ours."""


class Recorder(TrainerCallback):
    """Writes metrics.jsonl, reports to the observer, seals checkpoints, saves the best weights and stops early.

    `best_metric` decides which evaluation is best. It is compared in the trainer's own history, so that a resumed run
    decides as an uninterrupted one. `patience` counts evaluations; None never stops early.
    """

    def __init__(
        self, folder: Path, observer: Observer, patience: int | None, best_metric: str, greater_is_better: bool
    ) -> None:
        self._metrics = MetricsFile(folder)
        self._best = folder / BEST
        self._observer = observer
        self._patience = patience
        self._best_metric, self._sign = best_metric, -1.0 if greater_is_better else 1.0
        self._began = 0.0
        self._tokens_before = self._seconds_before = self._counted_before = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._metrics.rewind(state.global_step)
        self._tokens_before, self._seconds_before = totals(list(self._metrics.records()))
        # After a resume some trainers count tokens on from the checkpoint, others from 0.
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
        elif self._best_metric in figures and state.is_world_process_zero:
            figures.pop("num_tokens", None)
            self._metrics.append({"step": state.global_step, **figures})
            self._observer.evaluated(state.global_step, self._shown(figures))

    def _shown(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The figures of an evaluation to show; the loss only where it is the best metric."""
        shown = {ours: figures[f"eval_{name}"] for name, ours in SHOWN.items() if f"eval_{name}" in figures}
        if self._best_metric != "eval_loss":
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
        shown = {ours: figures[name] for name, ours in SHOWN.items() if name in figures}
        self._observer.step(Step(state.global_step, state.max_steps, shown, new / seconds, memory))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        values = [self._sign * entry[self._best_metric] for entry in state.log_history if self._best_metric in entry]
        if not values or model is None:
            return
        if is_best(values) and state.is_world_process_zero:
            save_trainable(model, self._best)
        if should_stop(values, self._patience):
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and args.output_dir is not None:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            # A pickle. Nothing here reads it, so it is better not left lying about.
            (checkpoint / "training_args.bin").unlink(missing_ok=True)
            (checkpoint / SEALED).touch()


def is_best(values: Sequence[float]) -> bool:
    """Whether the last evaluation is better (lower) than all before it."""
    return all(values[-1] < value for value in values[:-1])


def should_stop(values: Sequence[float], patience: int | None) -> bool:
    """Whether the last `patience` evaluations were all no better (lower) than the best before them."""
    return patience is not None and len(values) - 1 - values.index(min(values)) >= patience


def last_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint in `folder`; a kill can leave incomplete ones."""
    sealed = [path.parent for path in folder.glob(f"checkpoint-*/{SEALED}")]
    return max(sealed, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def totals(records: Sequence[Mapping[str, float]]) -> tuple[int, float]:
    """Trained tokens and training seconds up to the last of `records`, interruptions not counted."""
    last = next((record for record in reversed(records) if "tokens" in record), {})
    return int(last.get("tokens", 0)), last.get("seconds", 0.0)
