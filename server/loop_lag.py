"""How late the event loop wakes: the measure of whatever blocks it.

Owns the task that sleeps and compares. Knows nothing of what may have held the loop up.
"""

import asyncio
from collections.abc import Callable

PERIOD_S = 0.25


async def watch_loop_lag(note: Callable[[float], None], period_s: float = PERIOD_S) -> None:
    """Until cancelled: `note` by how many seconds each sleep of `period_s` was too long."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + period_s
        await asyncio.sleep(period_s)
        note(max(0.0, loop.time() - due))
