"""What a server does now and then without being asked.

Owns the timer, and that a chore which fails is told and tried again. Knows no chore.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

_log = structlog.get_logger(__name__)

PERIOD_S = 5.0

Chore = Callable[[], Awaitable[object]]


async def repeat(chores: Mapping[str, Chore], period_s: float = PERIOD_S) -> None:
    """Until cancelled, one after the other. A chore's key is what the log calls its failure."""
    while True:
        await asyncio.sleep(period_s)
        for failure, chore in chores.items():
            try:
                await chore()
            except Exception:
                _log.exception(failure)
