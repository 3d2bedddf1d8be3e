"""What a run reports: plain lines without a terminal, and one live line in it."""

import io
from pathlib import Path

from rich.console import Console

from training.observer import Step, TerminalObserver


def step(number: int, total: int = 40) -> Step:
    return Step(number, total, {"loss": 1.5}, 250.0, 3 << 30)


def test_without_a_terminal_there_are_about_twenty_lines(tmp_path: Path) -> None:
    told = io.StringIO()
    with TerminalObserver(Console(file=told, width=120)) as observer:
        observer.stage("training")
        for number in range(1, 41):
            observer.step(step(number))
        observer.evaluated(40, {"loss": 1.25})
    lines = told.getvalue().splitlines()
    assert lines[0] == "training"
    assert lines[1] == "step 1/40  loss 1.5  250 tokens/s  3.0 GiB"
    assert lines[-2].startswith("step 40/40") and lines[-1] == "step 40  held-out: loss 1.25"
    assert len(lines) == 3 + 20


def test_in_a_terminal_one_line_lives_with_loss_speed_memory_and_what_is_left() -> None:
    told = io.StringIO()
    with TerminalObserver(Console(file=told, force_terminal=True, width=120)) as observer:
        for number in (1, 2, 3):
            observer.step(step(number))
    assert "3/40" in told.getvalue() and "loss 1.5  250 tokens/s  3.0 GiB" in told.getvalue()
    assert "\x1b[?25h" in told.getvalue(), "the cursor is shown again, also when the run did not end"
