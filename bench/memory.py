"""The memory of a server: of its process and all descendants.

Owns the sum over a process tree. Reads this machine's processes and measures nothing else.
"""

from contextlib import suppress
from urllib.parse import urlsplit

import psutil

LOCAL = {"127.0.0.1", "localhost", "::1"}


def resident_bytes(pid: int) -> int:
    """Resident set size of `pid` and its descendants, 0 where it has ended. Pages that they share count in each."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def listener(url: str) -> int | None:
    """The process that listens at `url`, or None where that is another machine's or another user's."""
    address = urlsplit(url)
    if address.hostname not in LOCAL:
        return None
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == address.port:
            return connection.pid
    return None
