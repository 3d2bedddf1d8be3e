"""What a soak finds: each kind of leak is told by name, and what an idle server may keep is none."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from adapters.manifest import AdapterId
from bench.soak import FILES_SLACK, MIBI, Samples, Verdict, held, judge, on_disk, settle
from engine.snapshot import EngineStats, Resident
from tests.support.engine import FakeWorker
from tests.support.http import serve
from tests.support.server_rig import make_rig

IDLE: dict[str, float] = {"requests": 0, "KV blocks": 0, "adapter bytes": 0, "files of uploads": 0}
FINE = Counter({"upload: 201": 3, "upload: 422": 1, "delete: 404": 2, "stream: 200": 9})


def samples(grown: Sequence[float]) -> Samples:
    """One a second; MiB beyond 100."""
    return Samples([float(second) for second in range(len(grown))], [int((100 + mib) * MIBI) for mib in grown])


FLAT = samples([0.0] * 60)


def verdict(
    answers: Counter[str] = FINE,
    memory: Samples = FLAT,
    files: tuple[int, int] = (40, 40),
    left: dict[str, float] = IDLE,
) -> Verdict:
    return judge(answers, memory, files, minutes=1.0, left=left, growth=8.0)


def test_a_server_that_keeps_nothing_has_no_leak() -> None:
    found = verdict(files=(40, 40 + FILES_SLACK))
    assert found.leaks == ()
    assert (found.resident_first, found.resident_last) == (100 * MIBI, 100 * MIBI)
    assert found.answers == dict(sorted(FINE.items())) and found.held == IDLE


@pytest.mark.parametrize("name", IDLE)
def test_whatever_is_still_held_is_a_leak(name: str) -> None:
    """Blocks, slots, answers, files: none is too small."""
    assert verdict(left=IDLE | {name: 1.0}).leaks == (f"{name}: 1 still held",)


def test_memory_that_keeps_growing_is_a_leak() -> None:
    found = verdict(memory=samples([second / 6 for second in range(60)]))  # 10 MiB a minute
    assert found.leaks == ("memory: 10.0 MiB a minute",)
    assert verdict(memory=samples([second / 10 for second in range(60)])).leaks == (), "6 are allowed"


def test_open_files_beyond_the_slack_are_a_leak() -> None:
    assert verdict(files=(40, 41 + FILES_SLACK)).leaks == (f"open files: {FILES_SLACK + 1} more",)


@pytest.mark.parametrize("answer", ["complete: 500", "upload: 503", "stream without an end: 200"])
def test_answers_that_the_traffic_does_not_explain_are_told(answer: str) -> None:
    assert verdict(FINE + Counter({answer: 2})).leaks == (f"{answer} (2 times)",)


def test_leaks_of_all_kinds_are_told_together() -> None:
    found = verdict(
        FINE + Counter(["alias: 500"]), samples([float(n) for n in range(60)]), (0, 99), IDLE | {"KV blocks": 2.0}
    )
    assert [leak.partition(":")[0] for leak in found.leaks] == ["KV blocks", "memory", "open files", "alias"]


def test_the_slope_is_that_of_the_second_half() -> None:
    warming = [float(min(second, 30)) for second in range(60)]
    assert samples(warming).slope() == pytest.approx(0, abs=1), "30 MiB while everything becomes warm"
    assert samples([0.0] * 30 + [float(n) for n in range(30)]).slope() == pytest.approx(60 * MIBI)
    sawtooth = [second % 2 * 5.0 for second in range(60)]
    assert abs(samples(sawtooth).slope()) < 2 * MIBI, "what comes and goes is no growth"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_samples_have_no_slope(count: int) -> None:
    assert samples([50.0 * n for n in range(count)]).slope() == 0


@dataclass
class LettingGo:
    """Holds one thing less each time it is looked at, down to `last`."""

    holds: int
    last: int = 0
    looks: int = field(default=0)

    def __call__(self) -> dict[str, float]:
        self.looks += 1
        self.holds = max(self.holds - 1, self.last)
        return {"KV blocks": self.holds}


def test_settling_ends_when_nothing_is_held() -> None:
    server = LettingGo(3)
    assert settle(server, within_s=20, every_s=0) == {"KV blocks": 0} and server.looks == 3


def test_settling_ends_with_what_is_not_let_go_of() -> None:
    server = LettingGo(3, last=1)
    assert settle(server, within_s=0.05, every_s=0.01) == {"KV blocks": 1} and server.looks > 1


class Holding(FakeWorker):
    """An engine that holds some of everything."""

    def stats(self) -> EngineStats:
        return EngineStats(running=1, waiting=2, blocks_used=3, device_bytes_used=4, host_bytes_used=5)

    def residents(self) -> Sequence[Resident]:
        return [Resident(AdapterId(f"sha256:{7:064x}"), "device", 1000)]


def test_a_server_tells_of_all_that_it_holds(tmp_path: Path) -> None:
    """By the names that it really exports: a metric that is not there would be 0, and no leak ever."""
    rig = make_rig(tmp_path, Holding())
    with serve(rig.app) as live, rig.services.lifecycle.answering():
        found = held(live.url)
    rig.registry.close()
    assert found == {
        "requests": 3,
        "answers in progress": 1,
        "KV blocks": 3,
        "adapter bytes": 9,
        "resident adapters": 1,
    }


def test_an_idle_server_holds_nothing(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    with serve(rig.app) as live:
        assert not any(held(live.url).values())
    rig.registry.close()


def test_files_left_of_adapters_and_uploads_are_seen(tmp_path: Path) -> None:
    (tmp_path / "uploads" / "resumable").mkdir(parents=True)
    assert on_disk(tmp_path) == {"blobs on disk": 0, "files of uploads": 0}
    (tmp_path / "uploads" / "a.part").touch()
    (tmp_path / "uploads" / "resumable" / "session").mkdir()
    (tmp_path / "uploads" / "resumable" / "session" / "weights").touch()
    (tmp_path / "adapters" / "sha256" / "ab" / "abcd").mkdir(parents=True)
    assert on_disk(tmp_path) == {"blobs on disk": 1, "files of uploads": 2}
