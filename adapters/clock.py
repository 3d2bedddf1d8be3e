"""What time it is, for a process that must not be led astray when somebody sets the clock.

Owns one reading of both clocks: the wall's, which is what is stored and shown and may jump, and the steady one, which
does not, but knows no dates. Whoever only measures a span asks `time.monotonic` itself.
"""

import time
from collections.abc import Callable


class Clock:
    """Seconds since 1970."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def steady(self) -> float:
        """The wall clock as it was when this was made, plus the time since: for what lives for a span."""
        return self._offset + self._steady()

    def latest(self) -> float:
        """The later of both: for what must not live again because a clock was set back."""
        return max(self._wall(), self.steady())
