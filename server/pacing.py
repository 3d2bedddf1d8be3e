"""Requests that arrive together begin a few at a time, so that many of them never hold the event loop up.

Owns that order, first come, first served. Probes wait for nobody. Knows nothing of what requests do; how many there may
be at once is `connections.py`'s and the engine's.
"""

import asyncio
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

STARTS_PER_ROUND = 8
"""So many requests begin before the loop looks at its sockets again; reading and checking one takes a millisecond."""


class Pacer:
    """Lets `most` pass in each round of the loop. Everything here runs on the loop."""

    def __init__(self, most: int = STARTS_PER_ROUND) -> None:
        self._most, self._left = most, most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._counting = False

    async def wait(self) -> None:
        """Returns when it is the caller's turn."""
        loop = asyncio.get_running_loop()
        if not self._counting:
            self._counting = True
            loop.call_soon(self._next_round)
        if self._left and not self._waiting:
            self._left -= 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next_round(self) -> None:
        self._left = self._most
        self._counting = bool(self._waiting)
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its client may have gone
                turn.set_result(None)
                self._left -= 1
        if self._counting:
            asyncio.get_running_loop().call_soon(self._next_round)


class PacingMiddleware:
    """The application behind it, at the pacer's pace; `unpaced` paths do not wait."""

    def __init__(self, app: ASGIApp, unpaced: frozenset[str]) -> None:
        self._app, self._unpaced = app, unpaced
        self._pacer = Pacer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._unpaced:
            await self._pacer.wait()
        await self._app(scope, receive, send)
