"""The comparison of trainings: what it runs, that it goes on where it was, and the page it writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import training_report
from bench.training import EVERY, METHODS, SWEEPS, append, measure, missing, planned, results


@pytest.fixture
def config(tmp_path: Path) -> Path:
    data = tmp_path / "train.jsonl"
    data.write_text("{}\n", encoding="utf-8")
    path = tmp_path / "task.yaml"
    path.write_text(f"output: runs/x\ndata:\n  train: {data}\n", encoding="utf-8")
    return path


def report(score: float = 0.9, *, forgotten: float = 0.1) -> dict[str, Any]:
    used = {"path": "heldout.jsonl", "sha256": "0", "examples": 50, "tokens": 9, "truncated": 0}
    return {
        "base": "tiny",
        "steps": 24,
        "seconds": 12.0,
        "bytes": 2_000_000,
        "measured_bytes": 1_500_000_000,
        "data": [used | {"path": "train.jsonl"}, used],
        "task_score": {"base": 0.0, "trained": score},
        "heldout_loss": {"base": 9.0, "trained": 0.2},
        "general_loss": {"base": 3.0, "trained": 3.0 + forgotten},
        "samples": [{"prompt": "long"}],
    }


class Fake:
    """Trains nothing and leaves a report; remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[Sequence[str]] = []

    def __call__(self, config: Path, changes: Sequence[str], target: Path) -> None:
        self.calls.append(changes)
        target.mkdir()
        (target / "report.json").write_text(json.dumps(report()), encoding="utf-8")


def measured(label: str, seed: int, score: float, group: str = "method") -> dict[str, Any]:
    found = report(score)
    found.pop("samples")
    machine = {"processor": "abacus", "cores": 2, "load": 1.9}
    run = {"key": f"{label}{seed}", "group": group, "label": label, "seed": seed}
    return run | {"wall_s": 20.0, "cpu_s": 30.0, "report": found, "machine": machine}


def test_every_method_with_every_seed_and_the_first_seed_of_everything_first(config: Path) -> None:
    runs = planned(config, seeds=3, sweep_seeds=1)
    assert len(runs) == 3 * len(METHODS) + len(SWEEPS)
    assert len({run.key for run in runs}) == len(runs)
    assert {run.variant for run in runs[: len(METHODS) + len(SWEEPS)]} == {*METHODS, *SWEEPS}


def test_other_data_and_another_config_are_another_comparison(config: Path) -> None:
    before = {run.key for run in planned(config, 1, 1)}
    assert {run.key for run in planned(config, 1, 1)} == before
    (config.parent / "train.jsonl").write_text("{} \n", encoding="utf-8")
    after = {run.key for run in planned(config, 1, 1)}
    assert not before & after
    config.write_text(config.read_text(encoding="utf-8") + "method: lora\n", encoding="utf-8")
    assert not after & {run.key for run in planned(config, 1, 1)}


def test_a_run_says_what_it_changes_and_keeps_its_figures(config: Path) -> None:
    fake = Fake()
    run = planned(config, 2, 0)[-1]
    found = measure(run, config, fake)
    assert fake.calls == [[*EVERY, *run.variant.changes, "steps.seed=2"]]
    assert found["key"] == run.key
    assert found["report"]["task_score"]["trained"] == 0.9
    assert "samples" not in found["report"]


def test_what_is_done_is_not_done_again_and_half_a_line_is(config: Path, tmp_path: Path) -> None:
    raw = tmp_path / "out" / "raw.jsonl"
    runs = planned(config, 1, 0)
    assert list(missing(runs, raw)) == runs
    append(raw, measure(runs[0], config, Fake()))
    append(raw, measure(runs[1], config, Fake()))
    assert list(missing(runs, raw)) == runs[2:]
    raw.write_bytes(raw.read_bytes()[:-5])
    assert list(missing(runs, raw)) == runs[1:]
    append(raw, measure(runs[2], config, Fake()))
    assert [result["key"] for result in results(raw)] == [runs[0].key, runs[2].key]


def test_the_labels_of_the_sweeps_have_their_place_in_the_page() -> None:
    for variant in SWEEPS:
        assert variant.label in training_report.ORDER[variant.group]
    assert training_report.DEFAULT in {variant.label for variant in METHODS}
    for group, label in training_report.DEFAULT_POINTS.items():
        assert label in training_report.ORDER[group]


def test_the_page_shows_means_and_spread_and_the_default_in_each_sweep(tmp_path: Path) -> None:
    runs = [
        measured("full", 1, 0.8),
        measured("LoRA", 1, 0.9),
        measured("LoRA", 2, 1.0),
        measured("64", 1, 0.7, "rank"),
    ]
    page, picture = training_report.write(tmp_path, runs, planned=23)
    text = page.read_text(encoding="utf-8")
    assert "| full | 1 | 0.80 | 0.200 | +0.100 | 12 | 30 | 1,500 | 2.00 |" in text
    assert "| LoRA | 2 | 0.95 (0.90 to 1.00) |" in text
    assert text.index("| 16 | 2 | 0.95 (0.90 to 1.00) |") < text.index("| 64 | 1 | 0.70 |")
    assert "4 of 23 runs" in text and "busy" not in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_of_a_busy_machine_says_so(tmp_path: Path) -> None:
    run = measured("LoRA", 1, 0.9)
    run["machine"]["load"] = 9.2
    page, _ = training_report.write(tmp_path, [measured("full", 1, 0.9), run], planned=2)
    assert "load average was 2 to 9 on 2 cores" in page.read_text(encoding="utf-8")
