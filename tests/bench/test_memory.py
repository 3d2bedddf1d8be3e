"""What a tree of processes holds, and who listens where."""

import os
import socket
import subprocess
import sys

from bench import memory

CHILD_OF_A_CHILD = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "x = bytearray(64 * 2**20); print('ready', flush=True); input()"])
"""


def test_descendants_count() -> None:
    alone = memory.resident_bytes(os.getpid())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CHILD_OF_A_CHILD], **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == b"ready\n"
        assert memory.resident_bytes(child.pid) > 64 * 2**20
        assert memory.resident_bytes(os.getpid()) > alone + 64 * 2**20
        child.communicate(b"\n")
    assert memory.resident_bytes(child.pid) == 0


def test_the_listener_is_found_by_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert memory.listener(f"http://127.0.0.1:{port}") == os.getpid()
    assert memory.listener(f"http://127.0.0.1:{port}") is None
    assert memory.listener("http://192.0.2.1:80") is None
