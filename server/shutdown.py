"""From a signal to an orderly end: refuse, finish, stop.

Owns the signal handlers of a server's process, from when it listens until it has ended. The first SIGTERM or SIGINT
drains; the second ends at once, and none kills the process while it puts away what it has open.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import structlog
import uvicorn

from server.lifecycle import Lifecycle

_log = structlog.get_logger(__name__)
_HANGUP_S = 1.0  # for answers to notice that nobody is there any more; the rest are cancelled


class Signals:
    """SIGTERM and SIGINT of this process, heard whatever it is at: a loop's own handlers would end with the loop."""

    def __init__(self) -> None:
        self._count = 0
        self._numbers: tuple[int, ...] = ()

    def take(self, loop: asyncio.AbstractEventLoop, on_signal: Callable[[], None]) -> None:
        """From now on `on_signal` is called on `loop` for each, as long as that is there."""

        def note(number: int, frame: object) -> None:
            self._count += 1
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(on_signal)

        self._numbers = (signal.SIGTERM, signal.SIGINT)
        for number in self._numbers:
            signal.signal(number, note)

    @property
    def forced(self) -> bool:
        """Whether there was a second one."""
        return self._count > 1

    def end(self, code: int) -> int:
        """Nothing is left to be ended, so signals change nothing now. The exit code: `code`, unless one forced it."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)  # the interpreter would give others back to the system at its end
        return 1 if self.forced else code


class Server(uvicorn.Server):
    """uvicorn's, but for the signals: it takes them, closes its socket before the work is done, and at its end has the
    next one kill the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Shutdown:
    """`stop_engine` ends what still runs after the drain, so that its streams end with an error event."""

    def __init__(
        self, server: Server, lifecycle: Lifecycle, drain_s: float, stop_engine: Callable[[], Awaitable[None]]
    ) -> None:
        self._server, self._lifecycle, self._drain_s, self._stop_engine = server, lifecycle, drain_s, stop_engine
        self._draining: asyncio.Task[None] | None = None

    def on_signal(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
            return
        self._draining.cancel()
        self._server.force_exit = True
        self._server.should_exit = True

    async def hang_up(self) -> None:
        """Cut every connection, so that each answer ends as it does when its client leaves, and says no more."""
        state = self._server.server_state
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=_HANGUP_S)

    async def _drain(self) -> None:
        self._lifecycle.drain()
        _log.info("draining", answers=self._lifecycle.in_flight, at_most_s=self._drain_s)
        finished = await self._lifecycle.until_idle(self._drain_s)
        if not finished:
            _log.warning("drain_cut", answers=self._lifecycle.in_flight)
        await self._stop_engine()
        self._server.should_exit = True
