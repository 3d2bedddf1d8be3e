"""Many streams at once through the real HTTP face: all open together, all answered rightly, memory given back."""

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.connections import PROMPTS, measure
from bench.load import Shape
from engine.sequence import Output, Request
from tests.support.engine import FakeStream, FakeWorker
from tests.support.face import BASE, make_face
from tests.support.http import eventually, serve

SHAPE = Shape(vocab=256, prompt_tokens=16, output_tokens=12)
CROWD = 200


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


def test_a_crowd_of_streams_is_answered_rightly(tmp_path: Path) -> None:
    worker = Gathering()
    face = make_face(tmp_path, worker)
    with serve(face.app) as live:
        result = asyncio.run(measure(live.url, BASE, CROWD, SHAPE, os.getpid()))
        eventually(lambda: face.services.lifecycle.in_flight == 0)
    face.registry.close()
    assert (result.connections, result.wrong, result.health_failures) == (CROWD, 0, 0)
    assert worker.most == CROWD and not worker.running
    assert result.health_asked > 0 and result.resident_before and result.resident_peak
    assert result.resident_peak - result.resident_before < 200 << 20, "a stream costs kilobytes, not megabytes"


def test_a_wrong_answer_is_counted(tmp_path: Path) -> None:
    """An engine that mixes its streams up: the first crowd's prompt is answered with another's text."""

    class Confused(FakeWorker):
        async def submit(self, request: Request) -> FakeStream:
            await super().submit(request)
            swapped = request if len(self.seen) != PROMPTS + 1 else Request("x", (1, 2, 3), request.params)
            self.running[swapped.id] = swapped
            return FakeStream(self, swapped)

    face = make_face(tmp_path, Confused())
    with serve(face.app) as live:
        assert asyncio.run(measure(live.url, BASE, 4, SHAPE, None)).wrong == 1
    face.registry.close()


def test_a_refusal_is_told_with_its_reason(tmp_path: Path) -> None:
    face = make_face(tmp_path, FakeWorker(room=0))
    with serve(face.app) as live, pytest.raises(RuntimeError, match="429.*queue_full"):
        asyncio.run(measure(live.url, BASE, 1, SHAPE, None))
    face.registry.close()
