"""A pytest plugin under which the wall clock jumps an hour ahead or back each time it is asked.

Use as `pytest -p tests.support.jumping_clock`. Only for a process of its own: it replaces `time.time`, `time.time_ns`
and `datetime.now`, before anybody has imported them.
"""

import datetime
import time
from itertools import cycle
from typing import Self

HOUR_S = 3600

_asked, _now = time.time, datetime.datetime.now
_offsets = cycle((0, HOUR_S, -HOUR_S, 0, -HOUR_S, HOUR_S))


def _jumping() -> float:
    return _asked() + next(_offsets)


class _Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Self:
        moment = _now(tz) + datetime.timedelta(seconds=next(_offsets))
        return cls.combine(moment.date(), moment.timetz())


time.time = _jumping
time.time_ns = lambda: int(_jumping() * 1e9)
datetime.datetime = _Jumping  # type: ignore[misc]
