"""A real server on a real socket, in a thread of the test, around fakes or the real engine."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TypeVar

import httpx
import uvicorn
from fastapi import FastAPI

from server.connections import Bounds, bounded
from server.listen import bind

T = TypeVar("T")


class LiveServer:
    """One running server. `call` runs a coroutine on its loop."""

    def __init__(self, server: uvicorn.Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server, self.loop = server, loop
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)

    def call(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False)


@contextlib.contextmanager
def serve(
    app: FastAPI,
    bounds: Bounds | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    keep_alive_s: int = 5,
) -> Iterator[LiveServer]:
    """Serve `app` on a free port of 127.0.0.1 until the block ends. An idle connection is kept for `keep_alive_s`."""
    config = uvicorn.Config(
        app,
        http=bounded(bounds or Bounds()),
        log_level="error",
        timeout_graceful_shutdown=1,
        timeout_keep_alive=keep_alive_s,
    )
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        with bind("127.0.0.1", 0) as sock:
            await server.serve(sockets=[sock])

    def run() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    try:
        yield LiveServer(server, loops[0])
    finally:
        server.should_exit = True
        thread.join(10)


def eventually(holds: object, within_s: float = 10.0) -> None:
    """Wait until `holds()` is true. Raises AssertionError when it does not become so."""
    assert callable(holds)
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
