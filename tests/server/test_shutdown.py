"""SIGTERM on a real process: refuse, finish, exit 0; a second one ends at once, and at no moment kills."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.server_rig import BASE

ROOT = Path(__file__).parents[2]
SCRIPT = """
import asyncio, os, sys, time
from pathlib import Path
import uvicorn
from server.shutdown import Server, Shutdown, Signals
from tests.support.engine import FakeWorker
from tests.support.server_rig import make_rig

class Last:
    def __del__(self):
        os.write(1, b"ending\\n")
        time.sleep(float(sys.argv[3]))

async def main(folder: Path, drain_s: float, signals: Signals) -> int:
    rig = make_rig(folder, FakeWorker(delay_s=0.05))
    server = Server(uvicorn.Config(rig.app, port=0, log_level="critical", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    async def stop() -> None:
        rig.worker.stopped = True
        rig.worker.running.clear()
    shutdown = Shutdown(server, rig.services.lifecycle, drain_s, stop)
    signals.take(asyncio.get_running_loop(), shutdown.on_signal)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving
    rig.registry.close()
    return 0

last = Last()  # gone when the interpreter puts its modules away
signals = Signals()
code = asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2]), signals))
print("closing", flush=True)
time.sleep(float(sys.argv[3]))
sys.exit(signals.end(code))
"""


class Running:
    """A server process and a client to it. It takes `pause_s` to put away what is open, and again to end."""

    def __init__(self, folder: Path, drain_s: float, pause_s: float = 0.0) -> None:
        command = [sys.executable, "-c", SCRIPT, str(folder), str(drain_s), str(pause_s)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline())
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)

    def ask(self, tokens: int) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": BASE, "prompt": "x", "max_tokens": tokens})

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path, 20)
    yield made
    made.close()


def test_g67_running_requests_finish_and_new_ones_are_refused(running: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.ask, 40)
        time.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        refused = running.ask(1)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert running.client.get("/readyz").status_code == 503
        assert running.client.get("/livez").status_code == 200
        assert answer.result().status_code == 200
        assert len(answer.result().json()["choices"][0]["text"]) == 40
    assert running.process.wait(60) == 0


def test_g67_an_idle_server_leaves_at_once(running: Running) -> None:
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    assert time.monotonic() - began < 5


def test_g67_a_second_signal_does_not_wait(running: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.ask, 400)
        time.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert running.process.wait(60) == 1
        assert time.monotonic() - began < 5, "the drain would have taken 20 seconds"
        assert answer.exception() is not None or answer.result().status_code >= 500


def test_g67_the_drain_ends_when_its_time_is_up(tmp_path: Path) -> None:
    running = Running(tmp_path, 0.5)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.ask, 400)
        time.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(15) == 0
        assert answer.exception() is not None or answer.result().status_code >= 500
    running.close()


@pytest.mark.parametrize(("moment", "code"), [("closing", 1), ("ending", 0)])
def test_g67_a_second_signal_kills_at_no_moment(tmp_path: Path, moment: str, code: int) -> None:
    """While something is open it is put away first, and once everything is, there is nothing left to force."""
    running = Running(tmp_path, 20, pause_s=1)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.stdout is not None
    assert moment in map(str.strip, iter(running.process.stdout.readline, ""))
    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == code
    running.close()
