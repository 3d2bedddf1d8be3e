"""One commit against another: ratios by round, the verdict, and worktrees that are gone afterwards."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench.arrivals import ClosedLoop
from bench.errors import BenchError
from bench.load import LoadResult, RequestTiming
from bench.measure import Cell, Record, to_record
from bench.regress import Verdict, serve_command, table, verdicts, worktree
from tests.support.fake_target import FakeTarget


def as_records(side: str, traffic: str, rates: tuple[float, ...]) -> list[Record]:
    runs = [LoadResult(10 / rate, (RequestTiming(0.1, (0.1,), 10),)) for rate in rates]
    target, cell = FakeTarget(side), Cell(traffic, ClosedLoop(1), 1)
    return [to_record(target, cell, round_, run) for round_, run in enumerate(runs, start=1)]


def test_a_verdict_is_the_median_of_the_rounds_own_ratios() -> None:
    records = as_records("base", "base", (100, 10, 50)) + as_records("head", "base", (90, 10, 25))
    records += as_records("head", "8 adapters", (9, 9, 9))
    (found,) = verdicts(records)
    assert (found.traffic, found.arrivals) == ("base", "c1")
    assert found.ratios == pytest.approx((0.5, 0.9, 1.0))
    assert found.median == pytest.approx(0.9)


def test_each_kind_of_arrivals_has_its_verdict() -> None:
    records = as_records("base", "base", (100,)) + as_records("head", "base", (90,))
    records += [replace(one, arrivals="c8", tokens_per_s=one.round * 50) for one in records]
    assert [(one.arrivals, one.median) for one in verdicts(records)] == [("c1", pytest.approx(0.9)), ("c8", 1.0)]


def test_what_fails_is_told_in_red() -> None:
    found = [Verdict("slower", "c1", (0.9, 0.94, 1.0)), Verdict("as fast", "c1", (0.95,))]
    assert list(table(found, 0.95).columns[2].cells) == ["[red]0.940[/red]", "[green]0.950[/green]"]


def git(repository: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(repository), *who, *arguments], check=True, capture_output=True)


def test_a_commit_is_checked_out_and_removed_again(tmp_path: Path) -> None:
    clone, target = tmp_path / "clone", tmp_path / "tree"
    clone.mkdir()
    git(clone, "init", "-b", "main")
    for text in ("old", "new"):
        (clone / "file").write_text(text)
        git(clone, "add", "file")
        git(clone, "commit", "-m", text)
    with worktree(clone, "HEAD~1", target) as sources:
        assert (sources / "file").read_text() == "old"
    assert not target.exists()
    with pytest.raises(BenchError, match="nothing"), worktree(clone, "nothing", target):
        pass


def test_the_sources_of_a_commit_win_over_those_that_are_installed(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").touch()
    (tmp_path / "server" / "cli.py").write_text("def main():\n    print('the commit', sys.argv[1:])\nimport sys\n")
    ended = subprocess.run([*serve_command(tmp_path), "serve", "--port", "1"], capture_output=True, text=True)
    assert ended.stdout == "the commit ['serve', '--port', '1']\n", ended.stderr
