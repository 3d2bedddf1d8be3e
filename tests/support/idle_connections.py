"""Idle connections in a process of their own: `python -m tests.support.idle_connections PORT COUNT`.

Owns its own limit on open files, which it raises as far as the system lets it; `SPARE` fewer than that can be
connections. Now and then it asks whether the server is alive, and ends if it is not. Prints how many it has opened;
then, for each line it reads, how many of them were told that there are too many.
"""

import contextlib
import resource
import socket
import sys
from urllib.request import ProxyHandler, build_opener

SPARE = 64
"""Files that are none of the connections."""
_AT_ONCE = 250
"""Fewer than the system keeps for a server that is slow to accept: what is beyond that is lost, and tells nothing."""


def main(port: int, count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections: list[socket.socket] = []
    for more in range(0, count, _AT_ONCE):
        connections += [socket.create_connection(("127.0.0.1", port)) for _ in range(min(_AT_ONCE, count - more))]
        _ask(port)  # whoever came before has been let in by then
    print(count, flush=True)
    refused = set[int]()
    for _ in sys.stdin:
        refused |= {number for number, each in enumerate(connections) if _told(each)}
        print(len(refused), flush=True)


def _ask(port: int) -> None:
    """Raises OSError for another answer than 200."""
    build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/livez", timeout=60).close()


def _told(connection: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return connection.recv(64, socket.MSG_DONTWAIT).startswith(b"HTTP/1.1 503 ")
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
