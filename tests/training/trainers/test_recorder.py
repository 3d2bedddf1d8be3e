"""When a run stops early, which evaluation was best, and which checkpoint is whole enough to go on from."""

from pathlib import Path

import pytest

from training.errors import TrainingError
from training.observer import SilentObserver
from training.trainers.recorder import SEALED, Recorder, is_best, last_checkpoint, should_stop


@pytest.mark.parametrize(
    ("marks", "best"), [([2.0], True), ([2.0, 1.0], True), ([1.0, 1.0], False), ([1.0, 3.0, 2.0], False)]
)
def test_the_best_is_below_all_before_it(marks: list[float], best: bool) -> None:
    assert is_best(marks) == best


@pytest.mark.parametrize(
    ("marks", "patience", "enough"),
    [
        ([3.0, 2.0, 1.0], 1, False),
        ([1.0, 2.0], 1, True),
        ([1.0, 2.0], 2, False),
        ([2.0, 1.0, 1.0, 1.5], 2, True),
        ([1.0, 2.0, 3.0], None, False),
    ],
)
def test_patience_counts_evaluations_since_the_best(marks: list[float], patience: int | None, enough: bool) -> None:
    assert should_stop(marks, patience) == enough


def test_a_checkpoint_that_a_kill_left_half_written_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step, sealed in ((9, True), (10, True), (11, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").touch()
        if sealed:
            (folder / SEALED).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("loss", ["nan", "inf"])
def test_a_loss_that_is_no_number_ends_the_run_with_what_to_do(tmp_path: Path, loss: str) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    recorder = Recorder(tmp_path, SilentObserver(), None, "eval_loss", greater_is_better=False)
    state = TrainerState(global_step=3, max_steps=9)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(TrainingError, match=rf"{loss} at step 3. Lower optimizer.learning_rate"):
        recorder.on_log(arguments, state, TrainerControl(), logs={"loss": float(loss)})
