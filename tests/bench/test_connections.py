"""Many streams at once through the real HTTP rig: all open together, all answered rightly, memory given back."""

import asyncio
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bench.connections import GROWTH_MIB, HEALTH_P99_MS, MIB, PROMPTS, Result, measure, violations
from bench.load import RequestShape
from engine.sequence import Output, Request
from server.connections import raise_file_limit
from tests.support.engine import FakeStream, FakeWorker
from tests.support.http import eventually, serve
from tests.support.server_rig import BASE, make_rig

SHAPE = RequestShape(vocab=256, prompt_tokens=16, output_tokens=12)
CROWD = 1000
FILES = 2 * CROWD + 200
"""Both ends of every connection are this process's, and it has other files."""
GROWTH = 200 * MIB
"""For what both ends take; it was seen to be 54."""
KEPT = Result(
    connections=1000,
    most_open=1000,
    wrong=0,
    wall_s=10.0,
    tokens_per_s=6400.0,
    ttft_p50_ms=500.0,
    ttft_p99_ms=900.0,
    health_asked=180,
    health_failures=0,
    health_p50_ms=5.0,
    health_p99_ms=HEALTH_P99_MS,
    health_max_ms=5000.0,
    resident_before=700 * MIB,
    resident_peak=700 * MIB + int(GROWTH_MIB) * MIB,
)
"""A run at its limits."""


@dataclass
class Gathering(FakeWorker):
    """Answers the first `PROMPTS` requests at once; lets the others speak on only when all of the crowd are there."""

    most: int = 0
    gathered: asyncio.Event = field(default_factory=asyncio.Event)

    async def submit(self, request: Request) -> FakeStream:
        await super().submit(request)
        self.most = max(self.most, len(self.running))
        if len(self.seen) <= PROMPTS:
            return FakeStream(self, request)
        if self.most >= CROWD:
            self.gathered.set()
        return Patient(self, request)


class Patient(FakeStream):
    """Says that it was admitted, then waits for the crowd."""

    _said = False

    async def __anext__(self) -> Output:
        worker = self._worker
        assert isinstance(worker, Gathering)
        if self._said:
            await worker.gathered.wait()
        self._said = True
        return await super().__anext__()


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= before[1] < FILES:
        pytest.skip(f"the system lets a process open {before[1]} files, and the crowd needs {FILES}")
    raise_file_limit()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_crowd_of_streams_is_answered_rightly(tmp_path: Path, many_files: None) -> None:
    worker = Gathering()
    rig = make_rig(tmp_path, worker)
    with serve(rig.app) as live:
        result = asyncio.run(measure(live.url, BASE, CROWD, SHAPE, os.getpid()))
        eventually(lambda: rig.services.lifecycle.in_flight == 0)
    rig.registry.close()
    assert (result.connections, result.wrong, result.health_failures) == (CROWD, 0, 0)
    assert worker.most == CROWD and not worker.running
    assert result.health_asked > 0 and result.resident_before and result.resident_peak
    assert result.resident_peak - result.resident_before < GROWTH, "a stream costs kilobytes, not megabytes"


def test_a_wrong_answer_is_counted(tmp_path: Path) -> None:
    """An engine that mixes its streams up: the first crowd's prompt is answered with another's text."""

    class Confused(FakeWorker):
        async def submit(self, request: Request) -> FakeStream:
            await super().submit(request)
            swapped = request if len(self.seen) != PROMPTS + 1 else Request("x", (1, 2, 3), request.params)
            self.running[swapped.id] = swapped
            return FakeStream(self, swapped)

    rig = make_rig(tmp_path, Confused())
    with serve(rig.app) as live:
        assert asyncio.run(measure(live.url, BASE, 4, SHAPE, None)).wrong == 1
    rig.registry.close()


def test_a_refusal_is_told_with_its_reason(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, FakeWorker(room=0))
    with serve(rig.app) as live, pytest.raises(RuntimeError, match="429.*queue_full"):
        asyncio.run(measure(live.url, BASE, 1, SHAPE, None))
    rig.registry.close()


def test_what_is_within_its_limits_is_kept() -> None:
    assert violations(KEPT, HEALTH_P99_MS, GROWTH_MIB) == []
    elsewhere = replace(KEPT, resident_before=None, resident_peak=None)
    assert violations(elsewhere, HEALTH_P99_MS, 0) == [], "memory of a server that runs elsewhere is not known"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"wrong": 3}, "3 of 1000 streams answered otherwise than when asked alone."),
        ({"most_open": 999}, "At most 999 of 1000 streams were open at once."),
        ({"health_failures": 2}, "2 of 180 health answers were no 200."),
        ({"health_p99_ms": 579.4}, "was 579 ms, which is over the 100 ms of --health-p99-ms."),
        ({"health_p99_ms": float("nan")}, "was nan ms"),
        ({"resident_peak": 1300 * MIB}, "The server's memory grew by 600 MiB, over the 512 MiB of --growth-mib."),
    ],
)
def test_what_is_not_kept_is_told_in_one_sentence(change: dict[str, float], sentence: str) -> None:
    sentences = violations(replace(KEPT, **change), HEALTH_P99_MS, GROWTH_MIB)  # type: ignore[arg-type]
    assert len(sentences) == 1 and sentence in sentences[0]


def test_the_limits_are_the_callers() -> None:
    assert len(violations(KEPT, HEALTH_P99_MS / 2, GROWTH_MIB / 2)) == 2
