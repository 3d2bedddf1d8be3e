"""Clients that hang up: waiting for that, and work that ends with it.

Owns the reading of `http.disconnect`. Knows ASGI's messages, and nothing of what is being done for the client.
"""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive

from server.errors import ClientGone

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[None, None, T]) -> T:
    """`work`'s result; cancelled, and ClientGone raised, as soon as the client hangs up."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone()
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Return when the client has hung up. What it sends until then is dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass
