"""From a signal to an orderly end: refuse, finish, stop.

Owns the signal handlers of a running server. The first SIGTERM or SIGINT drains; the second ends at once.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable

import structlog
import uvicorn

from server.lifecycle import Lifecycle

_log = structlog.get_logger(__name__)
_HANGUP_S = 1.0  # for answers to notice that nobody is there any more; the rest are cancelled


class Shutdown:
    """`stop_engine` ends what still runs after the drain, so that its streams end with an error event."""

    def __init__(
        self, server: uvicorn.Server, lifecycle: Lifecycle, drain_s: float, stop_engine: Callable[[], Awaitable[None]]
    ) -> None:
        self._server, self._lifecycle, self._drain_s, self._stop_engine = server, lifecycle, drain_s, stop_engine
        self._draining: asyncio.Task[None] | None = None
        self.forced = False

    def install(self) -> None:
        """Take the signals over from uvicorn, which would close the door before the work is done."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.on_signal)

    def on_signal(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
            return
        self.forced = True
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
