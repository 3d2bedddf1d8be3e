"""Many requests at once begin a few in each round of the loop, in order; probes wait for nobody."""

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from server.pacing import STARTS_PER_ROUND, Pacer, PacingMiddleware

pytestmark = pytest.mark.anyio


async def nothing(*_: object) -> None:
    """Neither received nor sent."""


def paced(begun: list[str]) -> PacingMiddleware:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["path"])

    return PacingMiddleware(app, frozenset({"/livez"}))


def ask(app: PacingMiddleware, path: str) -> "asyncio.Task[None]":
    return asyncio.create_task(app({"type": "http", "path": path}, nothing, nothing))  # type: ignore[arg-type]


async def test_a_crowd_begins_a_few_at_a_time_and_in_order() -> None:
    begun: list[str] = []
    app = paced(begun)
    crowd = [ask(app, f"/{number}") for number in range(100)]
    seen = 0
    while not all(task.done() for task in crowd):
        await asyncio.sleep(0)
        assert len(begun) - seen <= STARTS_PER_ROUND
        seen = len(begun)
    assert begun == [f"/{number}" for number in range(100)]


async def test_a_probe_does_not_wait_behind_the_crowd() -> None:
    begun: list[str] = []
    app = paced(begun)
    crowd = [ask(app, f"/{number}") for number in range(100)]
    await ask(app, "/livez")
    assert "/livez" in begun and len(begun) < 3 * STARTS_PER_ROUND
    await asyncio.gather(*crowd)


async def test_who_has_gone_takes_no_turn() -> None:
    pacer = Pacer(most=1)
    first, gone, stays = (asyncio.create_task(pacer.wait()) for _ in range(3))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait_for(asyncio.gather(first, stays), 1)
    assert gone.cancelled()
    await asyncio.wait_for(pacer.wait(), 1)
