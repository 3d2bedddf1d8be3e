"""What a run tells: plain lines without a terminal, a live one in it, and figures in a file that kills do not spoil."""

import io
from pathlib import Path

from rich.console import Console

from training.curves import draw
from training.watch import Metrics, Step, Terminal


def step(number: int, total: int = 40) -> Step:
    return Step(number, total, {"loss": 1.5}, 250.0, 3 << 30)


def test_without_a_terminal_there_are_about_twenty_lines(tmp_path: Path) -> None:
    told = io.StringIO()
    with Terminal(Console(file=told, width=120)) as watch:
        watch.stage("training")
        for number in range(1, 41):
            watch.step(step(number))
        watch.evaluated(40, {"loss": 1.25})
    lines = told.getvalue().splitlines()
    assert lines[0] == "training"
    assert lines[1] == "step 1/40  loss 1.5  250 tokens/s  3.0 GiB"
    assert lines[-2].startswith("step 40/40") and lines[-1] == "step 40  held-out: loss 1.25"
    assert len(lines) == 3 + 20


def test_in_a_terminal_one_line_lives_with_loss_speed_memory_and_what_is_left() -> None:
    told = io.StringIO()
    with Terminal(Console(file=told, force_terminal=True, width=120)) as watch:
        for number in (1, 2, 3):
            watch.step(step(number))
    assert "3/40" in told.getvalue() and "loss 1.5  250 tokens/s  3.0 GiB" in told.getvalue()
    assert "\x1b[?25h" in told.getvalue(), "the cursor is shown again, also when the run did not end"


def test_a_resumed_run_forgets_what_came_after_its_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for number in range(1, 6):
        metrics.append({"step": number, "loss": 1.0})
    with metrics.path.open("a") as file:
        file.write('{"step": 6, "lo')
    metrics.rewind(3)
    metrics.append({"step": 4, "loss": 2.0})
    assert [record["step"] for record in metrics.records()] == [1, 2, 3, 4]
    assert metrics.path.read_text().endswith("}\n")


def test_curves_are_drawn_for_runs_of_any_length(tmp_path: Path) -> None:
    records = [{"step": float(n), "loss": 3.0 - n / 40, "learning_rate": 1e-4} for n in range(1, 101)]
    for count in (1, 2, 100):
        path = tmp_path / f"{count}.png"
        draw([*records[:count], {"step": float(count), "eval_loss": 1.0}], path, "a run")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_without_steps_there_is_no_picture(tmp_path: Path) -> None:
    draw([], tmp_path / "curves.png", "a run")
    assert not list(tmp_path.iterdir())
