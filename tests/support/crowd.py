"""Idle connections, as many as wanted, in a process of its own: `python -m tests.support.crowd PORT COUNT`.

Owns its own limit on open files, which it raises as far as the system lets it. Prints how many it has opened; then, for
each line it reads, how many of them were told that there are too many.
"""

import contextlib
import resource
import socket
import sys

SPARE = 64
"""Files that are none of the connections."""


def main(port: int, wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - SPARE)
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    print(count, flush=True)
    refused = set[int]()
    for _ in sys.stdin:
        refused |= {number for number, each in enumerate(crowd) if _told(each)}
        print(len(refused), flush=True)


def _told(connection: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return connection.recv(64, socket.MSG_DONTWAIT).startswith(b"HTTP/1.1 503 ")
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
