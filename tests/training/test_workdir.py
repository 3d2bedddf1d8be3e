"""The output appears whole or not at all, an interrupted run is nobody's surprise, and nobody's data is overwritten."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.training import config
from training.errors import ConfigInvalid, OutputInTheWay
from training.workdir import ResumePolicy, check_output, claim_workdir

DATA = {"data.train": "a", "base": "b"}


def interrupted(output: Path, **changes: Any) -> None:
    """A run that leaves a checkpoint and does not end."""
    with claim_workdir(config(output, **changes), DATA, "ask") as work:
        (work.path / "checkpoint").write_text("half")
        (work.result / "README.md").write_text("half")


def test_the_output_is_there_when_it_is_whole_and_the_work_is_gone(tmp_path: Path) -> None:
    with claim_workdir(config(tmp_path / "out"), DATA, "ask") as work:
        (work.result / "weights").write_text("all")
        assert not (tmp_path / "out").exists()
        work.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights"]


def test_an_output_that_is_there_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    decisions: tuple[ResumePolicy, ...] = ("ask", "resume", "fresh")
    for policy in decisions:
        with pytest.raises(OutputInTheWay, match="exists. Give another --output"):
            check_output(tmp_path / "out", policy)


def test_an_output_that_appears_during_the_run_is_not_overwritten(tmp_path: Path) -> None:
    with claim_workdir(config(tmp_path / "out"), DATA, "ask") as work:
        (tmp_path / "out").mkdir()
        with pytest.raises(OutputInTheWay, match="has appeared"):
            work.publish()
        assert work.result.exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigInvalid, match=r"output: .* cannot be written: Not a directory\. Choose another folder"),
        claim_workdir(config(tmp_path / "file" / "out"), DATA, "ask"),
    ):
        pass


def test_an_interrupted_run_asks_what_to_do(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    with pytest.raises(OutputInTheWay, match="--resume to go on with it, or --fresh"):
        check_output(tmp_path / "out", "ask")


def test_resume_keeps_what_the_steps_left_and_makes_the_rest_again(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    with claim_workdir(config(tmp_path / "out"), DATA, "resume") as work:
        assert (work.path / "checkpoint").read_text() == "half"
        assert not list(work.result.iterdir())


def test_fresh_begins_with_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    with claim_workdir(config(tmp_path / "out", optimizer={"learning_rate": 1.0}), DATA, "fresh") as work:
        assert not (work.path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("changes", "data", "told"),
    [
        ({"optimizer": {"learning_rate": 0.5}}, DATA, r"optimizer.learning_rate: it was 0.01, and is 0.5."),
        ({"adapter": {"layers": [1]}}, DATA, r"adapter.layers: it was None, and is \[1\]."),
        ({}, {**DATA, "data.train": "c"}, "data.train: its contents have changed."),
        ({}, {**DATA, "base": "c"}, "base: its contents have changed."),
    ],
)
def test_resume_refuses_another_run_and_says_what_is_other(
    tmp_path: Path, changes: Mapping[str, Any], data: Mapping[str, str], told: str
) -> None:
    interrupted(tmp_path / "out")
    with pytest.raises(ConfigInvalid, match=told), claim_workdir(config(tmp_path / "out", **changes), data, "resume"):
        pass


def test_what_comes_after_the_steps_may_change(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    told = config(
        tmp_path / "out", gate={"dtype": "float32"}, score={"limit": 3}, push={"url": "http://x", "name": "a"}
    )
    with claim_workdir(told, DATA, "resume") as work:
        assert (work.path / "checkpoint").exists()


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    with (
        claim_workdir(config(tmp_path / "out"), DATA, "ask"),
        pytest.raises(OutputInTheWay, match="Another process is training"),
        claim_workdir(config(tmp_path / "out"), DATA, "resume"),
    ):
        pass
