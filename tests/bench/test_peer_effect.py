"""That adapters act is asked before they are measured, and who answers as without them has no figures for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from bench.api import CompletionRequest
from bench.arrivals import ClosedLoop
from bench.errors import BenchError
from bench.measure import BASE, Cell, Schedule, Target
from bench.peers.adapter_effect import Effect, measure_effect
from bench.peers.peer import ServedModels, Unavailable
from bench.peers.runner import PeerRunner, install
from bench.workload import Mix
from tests.support.fake_target import FakeTarget

NAMES = ["a0", "a1", "a2"]
HAS = frozenset(NAMES)
GRAFTS = ServedModels(Path("base"), tuple(Path(name) for name in NAMES), rank=4)
CELLS = [Cell(BASE, ClosedLoop(1), 1), Cell("1 adapter", ClosedLoop(1), 1, models=("a0",), mix=Mix.parse("identical"))]


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ({}, ""),
        ({"a1": [ord(letter) for letter in "base"]}, "an adapter answers as the base does"),
        ({"a0": [7], "a1": [7]}, "two adapters answer alike"),
    ],
)
def test_adapters_act_where_all_answers_differ(answers: dict[str, list[int]], fault: str) -> None:
    target = FakeTarget("theirs", HAS, answers=answers)
    assert measure_effect(target, NAMES, vocab=1000).fault == fault
    assert target.asked == ["base", "a0", "a1", "base"], "two adapters are enough, and the base once more"


def test_a_base_that_keeps_an_adapter_is_a_fault() -> None:
    base, first, second = [(1, 2)], [(3, 4)], [(5, 6)]
    assert not Effect(base, [first, second], base).fault
    assert Effect(base, [first, second], second).fault == "the base answers as the adapter that was asked before it"


def test_what_differs_by_chance_is_no_effect() -> None:
    """A base that answers two prompts of three otherwise the next time hides an adapter that changes two."""
    base, again = [(1,), (2,), (3,)], [(1,), (7,), (8,)]
    first, second = [(1,), (4,), (5,)], [(4,), (4,), (4,)]
    assert not Effect(base, [first, second], base).fault
    assert Effect(base, [first, second], again).fault == "an adapter answers as the base does"


def test_without_adapters_only_the_base_is_asked() -> None:
    target = FakeTarget("theirs")
    effect = measure_effect(target, NAMES, vocab=1000)
    assert target.asked == ["base"] and not effect.adapters and not effect.fault


def test_answers_are_told_beside_those_of_another() -> None:
    ours = Effect([(1, 2), (3, 4)], [[(5, 6), (7, 8)], [(9, 9), (9, 9)]])
    theirs = Effect([(1, 2), (3, 4)], [[(5, 6), (0, 8)], [(0, 9), (9, 0)]])
    assert theirs.agreement_with(ours) == "4 of 4, 2 of 4, 1 of 4"
    assert Effect([(1, 0), (3, 4)]).agreement_with(ours) == "3 of 4", "a base alone"


def test_who_does_not_tell_its_tokens_is_not_believed() -> None:
    class Mute(FakeTarget):
        def ids(self, measure_effect: CompletionRequest) -> tuple[int, ...]:
            return ()

    with pytest.raises(BenchError, match="theirs does not tell which tokens"):
        measure_effect(Mute("theirs", HAS), NAMES, vocab=1000)


@dataclass
class FakePeer:
    """Serves `target`; `log` has each start and stop. Cannot be had, or does not start, where it has that fault."""

    target: FakeTarget
    log: list[str] = field(default_factory=list)
    not_had: str = ""
    not_started: str = ""

    @property
    def name(self) -> str:
        return self.target.name

    def install(self, directory: Path) -> None:
        if self.not_had:
            raise Unavailable(self.not_had)

    def version(self, directory: Path) -> str:
        return f"{self.name} 1.0"

    @contextmanager
    def start(self, directory: Path, models: ServedModels) -> Iterator[Target]:
        if self.not_started:
            raise Unavailable(self.not_started)
        self.log.append(f"+{self.name}")
        yield self.target
        self.log.append(f"-{self.name}")


def no_failure(target: Target, cell: Cell, error: Exception) -> None:
    raise AssertionError(f"{target.name} failed at {cell.traffic}: {error}")


def staged(tmp_path: Path) -> tuple[PeerRunner, Console]:
    console = Console(record=True, width=300)
    return PeerRunner(tmp_path, GRAFTS, 1000, console), console


def test_who_answers_as_without_adapters_has_figures_for_its_base_alone(tmp_path: Path) -> None:
    runner, console = staged(tmp_path)
    ours = runner.checked_target(FakeTarget("ours", HAS), "this checkout")
    deaf = FakePeer(FakeTarget("deaf", HAS, answers={"a0": [ord(letter) for letter in "base"]}))
    records = list(runner.together(ours, [deaf], Schedule(CELLS, 1000, no_failure), rounds=1))
    assert [(one.server, one.traffic) for one in records] == [("ours", "base"), ("deaf", "base"), ("ours", "1 adapter")]
    assert runner.notes["ours"] == "ours (this checkout): adapters change its answers"
    verdict = "an adapter answers as the base does, so only its base is measured; tokens before they part from ours's: "
    assert runner.notes["deaf"] == f"deaf (deaf 1.0): {verdict}48 of 48, 0 of 48, 48 of 48"
    assert runner.notes["deaf"] in console.export_text()


def test_in_turn_one_peer_runs_at_a_time_and_ours_opens_each_round(tmp_path: Path) -> None:
    runner, _ = staged(tmp_path)
    log: list[str] = []
    peers = [FakePeer(FakeTarget(name, HAS, log=log), log) for name in ("b", "c")]
    ours = FakeTarget("ours", HAS, log=log)
    records = list(runner.in_turn(ours, peers, Schedule(CELLS, 1000, no_failure), rounds=2))
    assert [(one.server, one.round) for one in records[::2]] == [(who, r) for r in (1, 2) for who in ("ours", "b", "c")]
    assert [entry for entry in log if entry[0] in "+-"] == ["+b", "-b", "+c", "-c"] * 2
    assert log.count("ours") == 6, "warmed up once, in two rounds of two cells"
    assert log.count("b") == 4 + 2 * 4, "asked for its effect once; each start warms up two cells and measures two"


def test_in_turn_who_fails_or_does_not_start_is_not_started_again(tmp_path: Path) -> None:
    runner, console = staged(tmp_path)
    failures: list[str] = []
    failing = FakePeer(FakeTarget("failing", HAS | {"a9"}, fails_at="a9"))
    absent = FakePeer(FakeTarget("absent"), not_started="its port is taken")
    cells = [Cell("1 adapter", ClosedLoop(1), 1, models=("a9",), mix=Mix.parse("identical"))]
    schedule = Schedule(cells, 1000, lambda target, cell, error: failures.append(f"{target.name}: {error}"))
    assert not list(runner.in_turn(FakeTarget("ours", HAS), [failing, absent], schedule, rounds=3))
    assert failures == ["failing: out of memory"] and failing.log == ["+failing", "-failing"]
    assert console.export_text().count("absent is left out: its port is taken") == 1


def test_in_turn_nothing_is_started_after_the_time(tmp_path: Path) -> None:
    runner, _ = staged(tmp_path)
    late = FakePeer(FakeTarget("late", HAS))
    assert not list(runner.in_turn(FakeTarget("ours", HAS), [late], Schedule(CELLS, 1000, no_failure, minutes=-1), 1))
    assert not late.log


def test_a_peer_that_cannot_be_had_is_told_and_the_others_are_kept(tmp_path: Path) -> None:
    _, console = staged(tmp_path)
    absent, present = FakePeer(FakeTarget("absent"), not_had="its wheel wants AVX512"), FakePeer(FakeTarget("present"))
    assert install([absent, present], tmp_path, console) == [present]
    assert "absent is left out: its wheel wants AVX512" in console.export_text()
