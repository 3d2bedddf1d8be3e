"""Somebody who asks after a server's health while others load it.

Owns the process that asks, so that the load's own client cannot slow it down, and what it saw: how long each answer
took, and how much memory the server had.
"""

import http.client
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

from bench.memory import resident_bytes

PERIOD_S = 0.05
MEMORY_EVERY = 20
TIMEOUT_S = 60.0


@dataclass(slots=True)
class Watch:
    """Milliseconds that `/livez` took, and the server's resident bytes if known, in order; `failures` had no 200."""

    latencies_ms: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    failures: int = 0


@contextmanager
def probing(url: str, pid: int | None) -> Iterator[Watch]:
    """Ask until the block ends, from a process of its own; the watch is filled in then. Memory is `pid`'s, if known."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_probe, args=(url, pid, theirs), daemon=True)
    process.start()
    watch = Watch()
    ours.recv()  # it has begun
    try:
        yield watch
    finally:
        ours.send(None)
        seen: Watch = ours.recv()
        watch.latencies_ms, watch.resident, watch.failures = seen.latencies_ms, seen.resident, seen.failures
        process.join()


def _probe(url: str, pid: int | None, parent: Connection) -> None:
    watch = Watch(resident=[resident_bytes(pid)] if pid else [])
    parent.send(None)
    while not parent.poll(PERIOD_S):
        began = time.perf_counter()
        status = _status(url, "/livez")
        watch.latencies_ms.append(1e3 * (time.perf_counter() - began))
        watch.failures += status != http.HTTPStatus.OK
        if pid and len(watch.latencies_ms) % MEMORY_EVERY == 0:
            watch.resident.append(resident_bytes(pid))
    parent.send(watch)


def _status(url: str, path: str) -> int:
    """One answer over a connection of its own, as an orchestrator asks."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()
