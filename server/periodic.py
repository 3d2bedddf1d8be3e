"""What a server does now and then without being asked.

Owns the timer, and that a task which fails is logged and tried again. Knows none of the tasks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

_log = structlog.get_logger(__name__)

PERIOD_S = 5.0

PeriodicTask = Callable[[], Awaitable[object]]


async def repeat(tasks: Mapping[str, PeriodicTask], period_s: float = PERIOD_S) -> None:
    """Until cancelled, one after the other. A task's key is what the log calls its failure."""
    while True:
        await asyncio.sleep(period_s)
        for failure, task in tasks.items():
            try:
                await task()
            except Exception:
                _log.exception(failure)
