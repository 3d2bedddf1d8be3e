"""Clients that do not read what they are sent: how long one may take next to nothing, before its connection is cut.

Owns that rule for one connection, whatever the answer is. Knows bytes that wait in the process, not those that the
system has taken, and neither HTTP nor routes. How much an engine may have made in advance is `engine/worker.py`'s.
"""

from asyncio import AbstractEventLoop, TimerHandle, Transport
from collections.abc import Callable

PACE_BYTES = 16 << 10
"""So much, or all there is, is to be taken in the time given. A system takes from another a window at a time."""


class StallTimer:
    """Watched while bytes wait for the client; `cut` is called once, when it took less than `PACE_BYTES` in `wait_s`.

    While it is watched, nothing more is written.
    """

    def __init__(self, loop: AbstractEventLoop, transport: Transport, wait_s: float, cut: Callable[[], None]) -> None:
        self._loop, self._transport, self._wait_s, self._cut = loop, transport, wait_s, cut
        self._timer: TimerHandle | None = None

    def watch(self) -> None:
        """From now on, if anything waits; whoever is watched already stays so."""
        if self._timer is None:
            self._begin()

    def stop(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        left = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(self._wait_s, self._look, left) if left else None

    def _look(self, before: int) -> None:
        self._timer = None
        if 0 < self._transport.get_write_buffer_size() > before - PACE_BYTES:
            self._cut()
        else:
            self._begin()
