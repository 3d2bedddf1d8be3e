"""A pytest plugin under which the wall clock jumps an hour ahead or back each time it is asked.

Use as `pytest -p tests.support.jumping_clock`. Only for a process of its own: it replaces `time.time`.
"""

import time
from itertools import cycle

HOUR_S = 3600.0

_asked = time.time
_offsets = cycle((0.0, HOUR_S, -HOUR_S, 0.0, -HOUR_S, HOUR_S))


def _jumping() -> float:
    return _asked() + next(_offsets)


time.time = _jumping
