"""The bridge to the engine's thread: streams, aborts, draining, and what happens when the thread dies."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from time import monotonic

import pytest

from adapters.device_quotas import DeviceQuota, DeviceQuotas
from adapters.errors import UnknownAdapter
from engine.errors import AdapterTooLarge, EngineStopped, MergeRefused, QueueFull
from engine.events import Finished
from engine.sequence import FinishReason, Output, Request, SamplingParams
from engine.worker import CALLBACKS_PER_TICK, MAX_UNREAD, EngineWorker, OutputStream
from tests.support.engine_fakes import Bench, expected_tokens, named

pytestmark = pytest.mark.anyio


def request(id: str, *, adapter: str | None = None, max_tokens: int = 4) -> Request:
    return Request(id, (1, 2, 3), SamplingParams(max_tokens=max_tokens), named(adapter) if adapter else None)


@asynccontextmanager
async def running(bench: Bench, max_unread: int = MAX_UNREAD) -> AsyncIterator[EngineWorker]:
    worker = EngineWorker(bench.engine, max_unread=max_unread)
    worker.start()
    try:
        yield worker
    finally:
        await worker.stop(0)
    assert not worker.alive and bench.mover.closed


async def collect(stream: OutputStream) -> list[Output]:
    return [output async for output in stream]


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until `condition()` holds."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "it does not come"
        await asyncio.sleep(0.005)


async def test_many_requests_stream_side_by_side() -> None:
    async with running(Bench(adapters={"a": 10, "b": 10})) as worker:
        requests = [request(str(n), adapter=(None, "a", "b")[n % 3]) for n in range(12)]
        streams = [await worker.submit(one) for one in requests]
        for one, outputs in zip(requests, await asyncio.gather(*map(collect, streams)), strict=True):
            assert [token for output in outputs for token in output.token_ids] == expected_tokens(one)
            assert [output.finish_reason for output in outputs][-1] is FinishReason.LENGTH
        await until(lambda: worker.stats().blocks_used == 0)


async def test_refusals_are_raised_by_submit() -> None:
    async with running(Bench(adapters={"slow": 10, "big": 900}, waiting=1)) as worker:
        with pytest.raises(UnknownAdapter):
            await worker.submit(request("r", adapter="nobody"))
        with pytest.raises(AdapterTooLarge):
            await worker.submit(request("r", adapter="big"))


async def test_how_full_device_quotas_are_is_told() -> None:
    bench = Bench(adapters={"a": 10, "b": 10}, quotas=DeviceQuotas(tenants={"t": DeviceQuota(adapters=2)}))
    async with running(bench) as worker:
        assert worker.device_quotas_used() == ()
        for adapter, part in (("a", 0.5), ("b", 1.0), ("a", 1.0)):
            await collect(await worker.submit(replace(request(f"r-{part}-{adapter}", adapter=adapter), tenant="t")))
            await until(partial(lambda told: worker.device_quotas_used() == told, (part,)))


async def test_a_full_queue_is_told() -> None:
    bench = Bench(adapters={"slow": 10}, waiting=1)
    bench.mover.instant = False
    async with running(bench) as worker:
        await worker.submit(request("waits", adapter="slow"))
        with pytest.raises(QueueFull):
            await worker.submit(request("refused"))
        assert worker.stats().waiting == 1 and worker.stats().waiting_adapters == ("slow",)


async def test_closing_a_stream_aborts_its_request() -> None:
    bench = Bench(adapters={"slow": 10})
    bench.mover.instant = False
    async with running(bench) as worker:
        stream = await worker.submit(request("r", adapter="slow"))
        await stream.aclose()
        await until(lambda: worker.stats().waiting == 0)
        assert [output async for output in stream] == []
        again = await worker.submit(request("r"))
        assert len(await collect(again)) == 4


async def test_f61_closing_in_the_middle_frees_the_blocks_within_a_step() -> None:
    bench = Bench()
    bench.runner.delay_s = 0.01
    async with running(bench) as worker:
        stream = await worker.submit(request("r", max_tokens=190))
        await anext(stream)
        begun = len(bench.runner.plans)
        await stream.aclose()
        await until(lambda: worker.stats().running == 0 and worker.stats().blocks_used == 0)
        assert len(bench.runner.plans) <= begun + 1, "no more than the step that was about to begin"


async def test_f62_no_more_waits_for_a_reader_than_the_bound() -> None:
    """Then its request is aborted, once; what waits for it can be read, holds no blocks, and goes with the stream.

    Others read as soon as they are submitted; the loop hands them at most CALLBACKS_PER_TICK outputs in each of the few
    rounds before that, however far ahead the engine is. What nobody reads is so long that it does not end first.
    """
    bound = 5 * CALLBACKS_PER_TICK
    bench = Bench(blocks=512, model_len=1000)
    async with running(bench, max_unread=bound) as worker:

        async def answer(id: str) -> list[Output]:
            return await collect(await worker.submit(request(id, max_tokens=bound + 20)))

        left, whole = await worker.submit(request("left", max_tokens=900)), await worker.submit(request("whole"))
        gathered = await asyncio.gather(*(answer(f"{number}") for number in range(9)))
        assert [outputs[-1].finish_reason for outputs in gathered] == [FinishReason.LENGTH] * 9
        await until(lambda: worker.stats().running == 0 and worker.stats().blocks_used == 0)
        assert [
            event.request
            for event in bench.events
            if isinstance(event, Finished) and event.reason is FinishReason.ABORT
        ] == ["left"]
        *tokens, end = await collect(left)
        assert [token for output in tokens for token in output.token_ids] == list(range(4, 4 + bound))
        assert (end.finish_reason, end.error_code) == (FinishReason.ABORT, "reader_too_slow")
        assert len(await collect(whole)) == 4, "an answer that fits waits for as long as it takes"
        assert not worker._outputs


async def test_f62_what_nobody_reads_goes_with_its_stream() -> None:
    async with running(Bench(), max_unread=30) as worker:
        left = await worker.submit(request("left", max_tokens=150))
        await until(lambda: not worker._outputs)
        await left.aclose()
        assert sum(len(output.token_ids) for output in left.unread()) == 30 and not left.unread()


@pytest.mark.parametrize("pause", [False, True])
async def test_a_caller_that_is_cancelled_while_submitting_harms_nobody(pause: bool) -> None:
    async with running(Bench()) as worker:
        for number in range(30):
            task = asyncio.create_task(worker.submit(request(f"gone {number}", max_tokens=150)))
            if pause:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await task.result().aclose()
        assert len(await collect(await worker.submit(request("stays")))) == 4
        await until(lambda: worker.stats().running + worker.stats().waiting == 0)


async def test_a_caller_that_stops_waiting_for_a_merge_harms_nobody() -> None:
    bench = Bench(adapters={"a": 10})
    bench.mover.instant = False
    async with running(bench) as worker:
        task = asyncio.create_task(worker.merge(named("a")))
        await until(lambda: "a" in bench.mover.reading)
        task.cancel()
        await asyncio.wait([task])
        bench.mover.arrive(named("a"))
        await until(lambda: worker.stats().merged == "a")
        outputs = await collect(await worker.submit(request("r", adapter="a")))
        assert outputs[0].admission is not None and outputs[0].admission.tier == "merged"
        tokens = [token for output in outputs for token in output.token_ids]
        assert tokens == expected_tokens(request("r", adapter="a"))


async def test_draining_lets_requests_end_and_takes_no_more() -> None:
    bench = Bench()
    worker = EngineWorker(bench.engine)
    worker.start()
    reading = asyncio.create_task(collect(await worker.submit(request("r", max_tokens=100))))
    stopping = asyncio.create_task(worker.stop(10))
    await asyncio.sleep(0)
    with pytest.raises(EngineStopped):
        await worker.submit(request("late"))
    outputs = await reading
    await stopping
    assert outputs[-1].finish_reason is FinishReason.LENGTH and not worker.alive


async def test_what_does_not_end_in_time_is_aborted() -> None:
    bench = Bench(adapters={"slow": 10})
    bench.mover.instant = False
    worker = EngineWorker(bench.engine)
    worker.start()
    reading = asyncio.create_task(collect(await worker.submit(request("r", adapter="slow"))))
    merging = asyncio.create_task(worker.merge(named("slow")))
    await until(lambda: worker.stats().waiting == 1)
    await worker.stop(0.05)
    assert [output.finish_reason for output in await reading] == [FinishReason.ABORT]
    with pytest.raises(EngineStopped):
        await merging
    with pytest.raises(EngineStopped):
        await worker.pin(named("slow"))


async def test_when_the_thread_dies_everyone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(adapters={"slow": 10})
    bench.mover.instant = False
    worker = EngineWorker(bench.engine)
    worker.start()
    reading = asyncio.create_task(collect(await worker.submit(request("r", adapter="slow"))))
    bench.engine.scheduler.waiting.append(bench.engine.scheduler.waiting[0])  # corrupt it beyond repair
    bench.mover.corrupt.add(named("slow"))
    await until(lambda: bench.mover.reading)
    bench.mover.arrive(named("slow"))
    outputs = await reading
    assert outputs[-1].finish_reason is FinishReason.ERROR
    await until(lambda: not worker.alive)
    assert "has died" in caplog.text
    for call in (worker.submit(request("late")), worker.merge(named("slow")), worker.unmerge()):
        with pytest.raises(EngineStopped):
            await call
    await worker.stop(1)


async def test_pins_merges_and_deletions_show_at_once() -> None:
    bench = Bench(adapters={"a": 10, "b": 10}, device=100)
    async with running(bench) as worker:
        await worker.pin(named("a"))
        await until(lambda: [r.tier for r in worker.residents()] == ["device"])
        assert worker.residents()[0].pinned and worker.stats().device_bytes_used == 10
        await worker.merge(named("a"))
        assert worker.stats().merged == "a" and worker.residents()[0].tier == "merged"
        with pytest.raises(MergeRefused):
            await worker.merge(named("b"))
        await worker.unmerge()
        assert worker.stats().merged is None
        await worker.unpin(named("a"))
        assert not worker.residents()[0].pinned
        await worker.forget(named("a"))
        assert worker.residents() == ()
        await worker.prefetch([named("b")])
        await until(lambda: [r.id for r in worker.residents()] == ["b"])


async def test_what_is_above_disk_or_on_its_way_is_held() -> None:
    bench = Bench(adapters={"a": 10, "b": 10}, device=100)
    bench.mover.instant = False
    async with running(bench) as worker:
        assert not worker.holds(named("a"))
        await worker.prefetch([named("a")])
        await until(lambda: worker.holds(named("a")))
        assert worker.residents() == () and not worker.holds(named("b"))


async def test_the_thread_rests_while_nothing_can_be_done() -> None:
    bench = Bench(adapters={"slow": 10})
    bench.mover.instant = False
    async with running(bench) as worker:
        await worker.submit(request("waits", adapter="slow"))
        await until(lambda: worker.silent_s > 0.3)


async def test_who_has_an_answer_sees_what_was_done() -> None:
    async with running(Bench(adapters={"a": 10})) as worker:
        for _ in range(20):
            await worker.pin(named("a"))
            assert worker.pins() == {named("a")}
            await worker.unpin(named("a"))
            assert worker.pins() == set()


async def test_the_thread_ticks_while_it_has_nothing_to_do() -> None:
    async with running(Bench()) as worker:
        await until(lambda: worker.silent_s > 0.01)
        await until(lambda: worker.silent_s < 0.01)
        assert all(0 <= worker.silent_s < 60 for _ in range(6)), (
            "whatever the wall clock does: see tests/faults/test_clock.py"
        )


async def test_the_loop_hears_a_few_outputs_at_a_time_in_their_order() -> None:
    worker = EngineWorker(Bench().engine)
    worker.start()
    heard: list[int] = []
    worker._enqueue_callbacks([partial(heard.append, number) for number in range(3 * CALLBACKS_PER_TICK)])
    worker._enqueue_callbacks([partial(heard.append, 3 * CALLBACKS_PER_TICK)])
    assert len(heard) == CALLBACKS_PER_TICK
    for parts in (2, 3):
        await asyncio.sleep(0)
        assert len(heard) == parts * CALLBACKS_PER_TICK, "whoever waited for a turn of the loop had one"
    await asyncio.sleep(0)
    assert heard == list(range(3 * CALLBACKS_PER_TICK + 1))
    await worker.stop(1)


def test_a_loop_that_is_gone_ends_the_thread_quietly(caplog: pytest.LogCaptureFixture) -> None:
    """As after a second SIGTERM, which waits for no step."""
    bench = Bench()
    bench.runner.delay_s = 0.05
    worker = EngineWorker(bench.engine)

    async def begin() -> None:
        worker.start()
        await worker.submit(request("r", max_tokens=100))

    with asyncio.Runner() as runner:
        runner.run(begin())
    worker._thread.join(10)
    assert not worker.alive and len(bench.runner.plans) < 100 and not caplog.records
