"""Whether an engine that has failed may be made again, or fails too often to be of use.

Owns the count. Knows no engine and no threads.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic


class Restarts:
    """At most `most` in any `within_s` seconds, by a clock that nobody can set."""

    def __init__(self, most: int = 3, within_s: float = 600.0, clock: Callable[[], float] = monotonic) -> None:
        self.count = 0  # since the start
        self._most, self._within_s, self._clock = most, within_s, clock
        self._latest: deque[float] = deque(maxlen=most)

    @property
    def allowed(self) -> bool:
        return len(self._latest) < self._most or self._clock() - self._latest[0] > self._within_s

    def note(self) -> None:
        """One more. Ask `allowed` first."""
        assert self.allowed, "too many restarts"
        self._latest.append(self._clock())
        self.count += 1
