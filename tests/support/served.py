"""`rootstock serve` itself, as a user starts it: a process, a port, a data directory, a SIGTERM at the end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.kernels import furnished

ROOTSTOCK = str(Path(sys.executable).with_name("rootstock"))


@dataclass(frozen=True, slots=True)
class Served:
    """A server that is ready. `seconds` is how long it took to become so."""

    url: str
    process: "subprocess.Popen[bytes]"
    seconds: float

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    @property
    def resident_bytes(self) -> int:
        """What the process keeps in memory, as the kernel counts it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


@contextlib.contextmanager
def served(*flags: str, log: Path, within_s: float = 180.0) -> Iterator[Served]:
    """Serve on a free port of 127.0.0.1; at the end of the block it drains and must exit 0."""
    port = _free_port()
    if "--data-dir" in flags:
        furnished(Path(_last(flags, "--data-dir")))
    command = [ROOTSTOCK, "serve", "--port", str(port), *flags]
    started = time.monotonic()
    with (
        log.open("wb") as out,
        _ended(subprocess.Popen(command, stdout=out, stderr=out, env=_environment())) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        _await_ready(url, process, log, within_s)
        yield Served(url, process, time.monotonic() - started)
        if process.poll() is None:  # a test may have killed it
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0, log.read_text()


def run(*arguments: str, within_s: float = 180.0) -> "subprocess.CompletedProcess[str]":
    """One `rootstock` command, to its end."""
    command: Sequence[str] = [ROOTSTOCK, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=within_s, env=_environment(), check=False)


def _last(flags: Sequence[str], name: str) -> str:
    return flags[len(flags) - flags[::-1].index(name)]


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """The user's own, but for settings of ours and the thread limit that the tests run under."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("ROOTSTOCK_", "OMP_", "PYTHONWARN"))
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_ready(url: str, process: "subprocess.Popen[bytes]", log: Path, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
