"""Whether the server takes new work: starting, ready, draining.

Owns the state and the count of answers in progress. Knows neither signals nor sockets.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from server.errors import Draining, NotReady


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Lifecycle:
    """One server's phase. Everything here runs on the event loop."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def ready(self) -> None:
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY

    def drain(self) -> None:
        self.phase = Phase.DRAINING

    def check(self) -> None:
        """Raise what a new request is told when the server does not take it."""
        if self.phase is Phase.DRAINING:
            raise Draining()
        if self.phase is Phase.STARTING:
            raise NotReady()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count one answer in progress, so that a drain waits for it."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def until_idle(self, timeout_s: float) -> bool:
        """Wait for the last answer, at most `timeout_s` seconds; whether all have ended."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
