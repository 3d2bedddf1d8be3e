"""Polls a server's health while others load it.

Owns the polling process, which the load generator's own process cannot slow down, and its log: the latency of each
answer, and the server's memory.
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
class HealthLog:
    """Latencies of `/livez` in milliseconds and the server's resident bytes if known, in order. `failures`: no 200."""

    latencies_ms: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    failures: int = 0


@contextmanager
def probe_health(url: str, pid: int | None) -> Iterator[HealthLog]:
    """Poll until the block ends, from a process of its own; the log is filled then. Memory is that of `pid`, if any."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_probe, args=(url, pid, theirs), daemon=True)
    process.start()
    health = HealthLog()
    ours.recv()  # it has begun
    try:
        yield health
    finally:
        ours.send(None)
        seen: HealthLog = ours.recv()
        health.latencies_ms, health.resident, health.failures = seen.latencies_ms, seen.resident, seen.failures
        process.join()


def _probe(url: str, pid: int | None, parent: Connection) -> None:
    health = HealthLog(resident=[resident_bytes(pid)] if pid else [])
    parent.send(None)
    while not parent.poll(PERIOD_S):
        began = time.perf_counter()
        status = _status(url, "/livez")
        health.latencies_ms.append(1e3 * (time.perf_counter() - began))
        health.failures += status != http.HTTPStatus.OK
        if pid and len(health.latencies_ms) % MEMORY_EVERY == 0:
            health.resident.append(resident_bytes(pid))
    parent.send(health)


def _status(url: str, path: str) -> int:
    """The status of one GET over a new connection, as an orchestrator's probe makes it."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()
