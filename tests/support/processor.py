"""Limits in processor time, which a busy machine does not stretch as it does a clock's."""

import time
from collections.abc import Callable


def least_time(work: Callable[[], object], tries: int = 3) -> float:
    """The seconds of processor time, all threads', of the best of a few tries: others' threads work in some of them."""
    seconds = []
    for _ in range(tries):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)
