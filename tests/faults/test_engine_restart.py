"""G72: an engine that fails as a whole is replaced; those under way are told, everybody else waits a moment."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from starlette.testclient import TestClient

from engine.engine import Engine
from engine.errors import EngineRestarting, EngineStopped
from engine.restarts import Restarts
from engine.sequence import FinishReason
from engine.worker import EngineWorker
from server.errors import api_error
from tests.engine.test_worker import collect, request, until
from tests.support.engine import FakeWorker
from tests.support.engine_fakes import Bench, named
from tests.support.server_rig import ServerRig, make_rig


class Workshop:
    """Makes engines over fakes; the next one is made only when `open` says so."""

    def __init__(self) -> None:
        self.benches = [self.bench()]
        self.open = Event()
        self.open.set()

    def bench(self) -> Bench:
        made = Bench(adapters={"a": 10, "b": 10, "slow": 10})
        made.mover.instant = True
        return made

    def remake(self) -> Engine:
        assert self.open.wait(20)
        self.benches.append(self.bench())
        return self.benches[-1].engine

    def fail(self) -> None:
        """Break the engine that runs, beyond what a step answers for."""
        scheduler = self.benches[-1].engine.scheduler
        scheduler.schedule = None  # type: ignore[method-assign,assignment]


@pytest.mark.anyio
async def test_g72_a_failed_engine_is_replaced_and_everybody_is_told() -> None:
    workshop = Workshop()
    worker = EngineWorker(workshop.benches[0].engine, workshop.remake)
    worker.start()
    await worker.pin(named("a"))
    assert len(await collect(await worker.submit(request("before it", adapter="b")))) == 4
    await until(lambda: worker.stats().device_bytes_used == 20)
    workshop.open.clear()
    workshop.benches[0].mover.instant = False
    waiting = asyncio.create_task(collect(await worker.submit(request("under way", adapter="slow"))))
    workshop.fail()
    waking = asyncio.create_task(worker.unpin(named("b")))  # answered by this engine or by the next
    outputs = await waiting
    assert (outputs[-1].finish_reason, outputs[-1].error_code) == (FinishReason.ERROR, "engine_failed")
    assert worker.restarting and worker.alive
    with pytest.raises(EngineRestarting):
        await worker.submit(request("too early"))
    workshop.open.set()
    await until(lambda: not worker.restarting)
    await waking
    await until(lambda: workshop.benches[1].mover.device == {named("a"), named("b")})
    assert worker.restarts == 1 and worker.pins() == {named("a")}
    assert len(await collect(await worker.submit(request("after it", adapter="b")))) == 4
    await worker.stop(1)
    assert not worker.alive and all(bench.mover.closed for bench in workshop.benches)


@pytest.mark.anyio
@pytest.mark.parametrize(("most", "error"), [(1, EngineRestarting), (0, EngineStopped)])
async def test_g72_who_waits_for_a_merge_is_told(most: int, error: type[Exception]) -> None:
    workshop = Workshop()
    workshop.benches[0].mover.instant = False
    worker = EngineWorker(workshop.benches[0].engine, workshop.remake, Restarts(most=most))
    worker.start()
    merging = asyncio.create_task(worker.merge(named("slow")))
    await until(lambda: worker.holds(named("slow")))
    workshop.fail()
    await worker.prefetch([])  # wakes it
    with pytest.raises(error):
        await asyncio.wait_for(merging, 20)
    await worker.stop(1)


@pytest.mark.anyio
async def test_g72_an_engine_that_fails_too_often_stays_down() -> None:
    workshop = Workshop()
    worker = EngineWorker(workshop.benches[0].engine, workshop.remake, Restarts(most=2))
    worker.start()
    for restarts in (1, 2, 2):
        workshop.fail()
        stream = await worker.submit(request(f"{restarts}, {len(workshop.benches)}"))
        assert (await collect(stream))[-1].error_code == "engine_failed"
        await until(lambda: not worker.restarting)
        assert worker.restarts == restarts
    await until(lambda: not worker.alive)
    with pytest.raises(EngineStopped):
        await worker.submit(request("late"))
    await worker.stop(1)


def test_g72_restarts_are_counted_in_a_window() -> None:
    now = [0.0]
    restarts = Restarts(most=2, within_s=10, clock=lambda: now[0])
    restarts.note()
    now[0] = 6
    restarts.note()
    assert not restarts.allowed
    now[0] = 11
    assert restarts.allowed and restarts.count == 2


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ServerRig]:
    made = make_rig(tmp_path, FakeWorker(restarting=True, restarts=1))
    yield made
    made.registry.close()


def test_g72_probes_and_codes_tell_of_a_restart(rig: ServerRig) -> None:
    http = TestClient(rig.app)
    assert http.get("/livez").json() == {"status": "restarting", "engine_restarts": 1}
    assert http.get("/livez").status_code == 200 and http.get("/readyz").status_code == 503
    rig.worker.alive = False
    assert http.get("/livez").status_code == 503
    error = api_error(EngineRestarting("soon"))
    assert error is not None and (error.status_code, error.code) == (503, "engine_restarting")
