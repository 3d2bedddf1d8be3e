"""The bridge between the event loop and the engine's own thread.

Owns the thread, its inbox, and each request's outbox on the loop. Everything that touches the engine runs on its
thread, between steps; the loop never waits for a step. Also its supervisor: an engine that fails as a whole is put
away with all it held, and another one takes over, unless that happens too often.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import TypeVar

from adapters.manifest import AdapterId
from adapters.residency import Tier
from engine.engine import Delivery, Engine
from engine.errors import EngineRestarting, EngineStopped
from engine.restarts import Restarts
from engine.sequence import FinishReason, Output, Request
from engine.snapshot import EngineStats, Resident, residents_of, stats_of

log = logging.getLogger(__name__)

CALLBACKS_PER_TICK = 32
"""Outputs and results that the loop takes in before it looks at its sockets again; one takes about 0.1 ms to write."""

MAX_UNREAD = 2048
"""Outputs that may wait for one request's reader, each a token's. One takes 0.25 KiB, with 20 alternatives 2.6 KiB."""

Job = Callable[[], None]
T = TypeVar("T")


class EngineWorker:
    """Runs one engine on one thread. Start it on the loop that will submit to it.

    `make_engine` gives the engine that takes over from one that failed; without it, the thread ends with its engine.
    When `max_unread` outputs wait for a request's reader, it is aborted.
    """

    def __init__(
        self,
        engine: Engine,
        make_engine: Callable[[], Engine] | None = None,
        restarts: Restarts | None = None,
        max_unread: int = MAX_UNREAD,
    ) -> None:
        self._engine = engine
        self._make_engine = make_engine
        self._restarts = restarts or Restarts()
        self._max_unread = max_unread
        self._restarting = False
        self._inbox: SimpleQueue[Job] = SimpleQueue()
        self._outputs: dict[str, asyncio.Queue[Output]] = {}
        self._callbacks: deque[Job] = deque()  # on the loop
        self._replies: list[Job] = []  # on the thread, to those who called it
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._ended = False
        self._closed = False  # whether the inbox was read for the last time; under `_inbox_lock`
        self._inbox_lock = Lock()
        self._ticked = monotonic()
        self._stats = EngineStats()
        self._residents: Callable[[], tuple[Resident, ...]] = tuple
        self._device_quotas_used: tuple[float, ...] = ()
        self._snapshot_key: object = None
        self._pins: frozenset[AdapterId] = frozenset()
        engine.tiers.wake = self._wake

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._snapshot()
        self._thread.start()

    async def stop(self, drain_s: float) -> None:
        """Take no more requests, let those under way end for `drain_s` seconds, abort the rest, end the thread."""
        self._stopping = True
        deadline = monotonic() + drain_s
        while self._outputs and self._thread.is_alive() and monotonic() < deadline:
            await asyncio.sleep(0.02)
        if self._thread.is_alive():
            self._inbox.put(self._end)
            await asyncio.to_thread(self._thread.join)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread is up."""
        return self._thread.is_alive()

    @property
    def restarting(self) -> bool:
        """Whether an engine has failed and the next one is not there yet."""
        return self._restarting

    @property
    def restarts(self) -> int:
        """How many engines have failed and been replaced."""
        return self._restarts.count

    @property
    def silent_s(self) -> float:
        """Seconds since the thread last came round; it does so at least every second when idle."""
        return monotonic() - self._ticked

    def stats(self) -> EngineStats:
        return self._stats

    def residents(self) -> tuple[Resident, ...]:
        """Every adapter above disk, most recently used first."""
        return self._residents()

    def holds(self, adapter: AdapterId) -> bool:
        """Whether it is above disk or on its way there. Asked from any thread, beside a step that may change it."""
        residency = self._engine.tiers.residency
        return residency.is_fetching(adapter) or residency.tier(adapter) is not Tier.DISK

    def device_quotas_used(self) -> tuple[float, ...]:
        """What fraction of their device quotas the tenants use, the fullest first."""
        return self._device_quotas_used

    def pins(self) -> frozenset[AdapterId]:
        """The adapters that are pinned, loaded or not yet."""
        return self._pins

    async def submit(self, request: Request) -> "OutputStream":
        """Queue a request; iterate to follow it. Closing the stream early aborts the request within a step.

        Raises EngineStopped, EngineRestarting, and what `Engine.submit` raises, before anything is queued.
        """
        if self._restarting:
            raise EngineRestarting(_RESTARTING)
        if self._stopping or not self.alive:
            raise EngineStopped(_STOPPED)
        assert request.id not in self._outputs, "two requests cannot share an id"
        outputs: asyncio.Queue[Output] = asyncio.Queue()
        self._outputs[request.id] = outputs
        try:
            await self._call(lambda: self._engine.submit(request))
        except BaseException:
            self._abandon(request.id)
            raise
        return OutputStream(outputs, lambda: self._abandon(request.id))

    async def pin(self, adapter: AdapterId) -> None:
        await self._call(lambda: self._engine.tiers.pin(adapter))

    async def unpin(self, adapter: AdapterId) -> None:
        await self._call(lambda: self._engine.tiers.unpin(adapter))

    async def prefetch(self, adapters: Sequence[AdapterId]) -> None:
        await self._call(lambda: self._engine.tiers.prefetch(adapters))

    async def forget(self, adapter: AdapterId) -> None:
        await self._call(lambda: self._engine.forget(adapter))

    async def merge(self, adapter: AdapterId) -> None:
        """Returns once the adapter is served from the weights. Raises MergeRefused or loader's DoesNotFit."""
        await asyncio.wrap_future(await self._call(lambda: self._engine.merge(adapter)))
        await self._call(_nothing)  # the snapshots show it now

    async def unmerge(self) -> None:
        await self._call(self._engine.unmerge)

    async def _call(self, job: Callable[[], T]) -> T:
        """Run `job` on the engine's thread between two steps; stats and residents show what it did."""
        done: Future[T] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():  # the caller has gone
                return
            try:
                result = self._do(job)
            except Exception as error:
                self._replies.append(partial(done.set_exception, error))
            else:
                self._replies.append(partial(done.set_result, result))

        with self._inbox_lock:
            if self._closed:
                raise EngineStopped(_STOPPED)
            self._inbox.put(run)
        return await asyncio.wrap_future(done)

    def _abandon(self, request_id: str) -> None:
        if self._outputs.pop(request_id, None) is not None:
            self._inbox.put(lambda: self._engine.abort(request_id))

    def _put(self, request_id: str, output: Output) -> None:
        """On the loop: where the request waits for it, if it still does. One with too much unread is aborted."""
        outputs = self._outputs.get(request_id)
        if outputs is None:
            return
        outputs.put_nowait(output)
        if output.finish_reason is None and outputs.qsize() >= self._max_unread:
            self._abandon(request_id)
            outputs.put_nowait(_READER_TOO_SLOW)

    def _enqueue_callbacks(self, callbacks: Sequence[Job]) -> None:
        """On the loop: those from the engine's thread are run after those that still wait."""
        idle = not self._callbacks
        self._callbacks.extend(callbacks)
        if idle:
            self._run_callbacks()

    def _run_callbacks(self) -> None:
        """A few at a time: each wakes somebody who then writes to a client.

        A step's tokens for a thousand streams would otherwise keep the loop from its sockets until all were written.
        """
        for _ in range(min(CALLBACKS_PER_TICK, len(self._callbacks))):
            self._callbacks.popleft()()
        if self._callbacks:
            assert self._loop is not None
            self._loop.call_soon(self._run_callbacks)

    def _wake(self) -> None:
        self._inbox.put(_nothing)

    # On the engine's thread

    def _run(self) -> None:
        try:
            while not self._ended:
                try:
                    self._turn()
                except BaseException:
                    log.exception("the engine has failed")
                    self._replace_engine()
        except BaseException:
            log.exception("the engine's thread has died")
            self._stopping = True
        finally:
            self._close()
            self._engine.tiers.close()

    def _replace_engine(self) -> None:
        """Tell everybody under way, and begin anew with what was pinned and resident. Raises EngineStopped, if that
        was once too often, and whatever making an engine raises.
        """
        self._restarting = self._make_engine is not None and self._restarts.allowed
        self._deliver([(request_id, _FAILED) for request_id in list(self._outputs)])
        if self._make_engine is None or not self._restarting:
            raise EngineStopped("The engine has failed too often to be started once more.")
        self._restarts.note()
        self._engine.cancel_merge(EngineRestarting(_RESTARTING))
        self._engine.tiers.close()
        pins, residents = self._pins, [resident.id for resident in self._residents()]
        self._engine = self._make_engine()
        self._engine.tiers.wake = self._wake
        self._engine.tiers.restore(pins, residents)
        self._snapshot_key = None
        self._snapshot()
        self._restarting = False
        log.warning("a new engine has taken over; it is restart %d since the start", self._restarts.count)

    def _close(self) -> None:
        """Turn away whoever still waits for the thread."""
        with self._inbox_lock:
            self._closed = True
        self._engine.cancel_merge(EngineStopped(_STOPPED))
        self._read_inbox(wait=False)

    def _do(self, job: Callable[[], T]) -> T:
        if self._closed:
            raise EngineStopped(_STOPPED)
        return job()

    def _turn(self) -> None:
        """One round: do what came in, then one step if there is something to do."""
        self._ticked = monotonic()
        self._read_inbox(wait=self._engine.stalled or not self._engine.has_work)
        if self._engine.has_work and not self._ended:
            self._deliver(self._engine.step())
        self._snapshot()

    def _read_inbox(self, wait: bool) -> None:
        """Do what came in; with nothing else to do, wait up to a second for it."""
        try:
            job = self._inbox.get(timeout=1.0) if wait else self._inbox.get_nowait()
            while True:
                job()
                if self._ended and not self._closed:
                    return
                job = self._inbox.get_nowait()
        except Empty:
            return
        finally:
            self._send_replies()

    def _send_replies(self) -> None:
        """Reply to those who called, after one snapshot for all of them: it walks everybody who waits."""
        if self._replies:
            self._snapshot()
            replies, self._replies = self._replies, []
            self._post_to_loop(replies)

    def _end(self) -> None:
        self._deliver(self._engine.abort_all())
        self._ended = True

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._post_to_loop([partial(self._put, request_id, output) for request_id, output in deliveries])

    def _post_to_loop(self, callbacks: Sequence[Job]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._enqueue_callbacks, callbacks)
        except RuntimeError:  # it is closed, after an end that waited for nobody
            self._ended = True

    def _snapshot(self) -> None:
        """What others see from now on. There may be thousands of residents, so they are listed when they change."""
        residency = self._engine.tiers.residency
        self._stats = stats_of(self._engine)
        key = residency.changes, self._stats.running_adapters, self._stats.merged
        if key != self._snapshot_key:
            self._snapshot_key = key
            self._residents, self._pins = residents_of(self._engine), residency.pinned
            self._device_quotas_used = residency.quotas.fractions_used()


_STOPPED = "The server is shutting down. Send the request to another instance, or retry later."
_RESTARTING = "The engine has failed and is being restarted. Try again in a moment."
_FAILED = Output(
    finish_reason=FinishReason.ERROR, error="The engine has failed. Try again.", error_code="engine_failed"
)
_READER_TOO_SLOW = Output(
    finish_reason=FinishReason.ABORT,
    error="The answer was made faster than it was read, until too much of it waited. Read faster, or ask for less.",
    error_code="reader_too_slow",
)


class OutputStream(AsyncIterator[Output]):
    """One request's outputs, in order. Close it when you stop listening: that aborts the request, if it still runs."""

    def __init__(self, outputs: "asyncio.Queue[Output]", abandon: Callable[[], None]) -> None:
        self._outputs = outputs
        self._abandon = abandon
        self._finished = False

    async def __anext__(self) -> Output:
        if self._finished:
            raise StopAsyncIteration
        output = await self._outputs.get()
        if output.finish_reason is not None:
            await self.aclose()
        return output

    async def aclose(self) -> None:
        self._finished = True
        self._abandon()

    def unread(self) -> list[Output]:
        """Take what has come and nobody has read; after `aclose`, that is all that will ever come."""
        return [self._outputs.get_nowait() for _ in range(self._outputs.qsize())]


def _nothing() -> None:
    """The job that only wakes the thread."""
