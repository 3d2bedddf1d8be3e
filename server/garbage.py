"""When Python looks for reference cycles, so that nobody waits for it.

Owns the garbage collector's settings. Knows of requests only whether there are any.
"""

import gc
from collections.abc import Callable
from time import monotonic

YOUNG = 10_000
"""So many new containers are looked through at a time, which takes a millisecond; Python's own 700 come too often."""

MIDDLE = 5
"""So many of those make one look through all that is not old yet."""

NEVER = 1_000_000_000
"""When Python itself looks through what is old. It would do so every second beside a thousand streams, for 100 ms."""

LONGEST_S = 600.0
"""A server that is never idle looks through everything so often."""


class Garbage:
    """Looks through everything when nobody is being answered. Reference counts free nearly all without it."""

    def __init__(self, busy: Callable[[], bool], clock: Callable[[], float] = monotonic) -> None:
        self._busy, self._clock = busy, clock
        self._collected_at = clock()

    def settle(self) -> None:
        """What was made for the start stays: it is never looked at again, all the modules of torch among it."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, MIDDLE, NEVER)

    async def collect(self) -> None:
        """Now, if there is something to look through and this is the time."""
        something = gc.get_count()[2] > 0  # looks at the younger ones, since the last through everything
        late = self._clock() - self._collected_at >= LONGEST_S
        if something and (late or not self._busy()):
            gc.collect()
            self._collected_at = self._clock()
