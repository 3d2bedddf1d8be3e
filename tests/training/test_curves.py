"""The curves of runs of any length, and no picture of a run without steps."""

from pathlib import Path

from training.curves import draw


def test_curves_are_drawn_for_runs_of_any_length(tmp_path: Path) -> None:
    records = [{"step": float(n), "loss": 3.0 - n / 40, "learning_rate": 1e-4} for n in range(1, 101)]
    for count in (1, 2, 100):
        path = tmp_path / f"{count}.png"
        draw([*records[:count], {"step": float(count), "eval_loss": 1.0}], path, "a run")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_without_steps_there_is_no_picture(tmp_path: Path) -> None:
    draw([], tmp_path / "curves.png", "a run")
    assert not list(tmp_path.iterdir())
