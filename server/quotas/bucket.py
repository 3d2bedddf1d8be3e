"""A limit per minute that refills evenly: a token bucket (as in RFC 2697) on a clock that never jumps.

Owns that arithmetic. Known limiters for Python read the wall clock, which an operator or NTP may set.
"""

from collections.abc import Callable

MINUTE = 60.0


class Bucket:
    """Holds at most `limit` and refills at `limit` a minute. `clock` gives monotonic seconds."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self.limit = limit
        self._clock = clock
        self._level = float(limit)
        self._at = clock()

    def has(self, count: int) -> bool:
        return self._now() >= count

    def take(self, count: int) -> None:
        """Ask `has` first."""
        self._set(self._now() - count)

    def give_back(self, count: int) -> None:
        """What was taken and not used. More than was taken is a debt: a negative `count`."""
        self._set(self._now() + count)

    @property
    def remaining(self) -> int:
        return max(0, int(self._now()))

    def wait_s(self, count: int) -> float:
        """Seconds until `count` can be taken."""
        return max(0.0, count - self._now()) * MINUTE / self.limit

    @property
    def reset_s(self) -> float:
        """Seconds until it is full."""
        return self.wait_s(self.limit)

    def _now(self) -> float:
        return min(self.limit, self._level + (self._clock() - self._at) * self.limit / MINUTE)

    def _set(self, level: float) -> None:
        self._at, self._level = self._clock(), level
