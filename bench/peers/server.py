"""A peer that is a server: its process for the time of a measurement.

Owns the process, its log, and that all which came from it ends with it.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from bench import launch
from bench.api import Dialect
from bench.errors import BenchError
from bench.measure import HttpTarget
from bench.peers.peer import Unavailable
from bench.running_server import connect

STOP_S = 10.0
START_S = 1800.0
"""Some compile the model at their first start, which takes minutes on a quiet machine."""


def no_preparation(url: str) -> None:
    """The preparation of servers that need none before the first request."""


@contextmanager
def running_peer(
    name: str,
    command: Sequence[str],
    port: int,
    dialect: Dialect,
    log: Path,
    settings: Mapping[str, str],
    prepare: Callable[[str], None] = no_preparation,
) -> Iterator[HttpTarget]:
    """Run `command`, which listens at `port`, until the block ends; `prepare` gets its URL once it is ready.

    Raises Unavailable with the end of `log` where it does not become ready.
    """
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | dict(settings))
    try:
        try:
            launch.wait_ready(f"{url}/health", process, log, START_S)
            prepare(url)
            target = connect(name, url, dialect)
        except (BenchError, httpx.HTTPError) as error:
            raise Unavailable(str(error)) from error
        yield target
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the process and its children: one that outlived it would take cores from the next measurement."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    launch.stop(process)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                end(child)
        _, children = psutil.wait_procs(children, timeout=STOP_S)
