"""SIGTERM on a real process: refuse, finish, exit 0; a second one ends at once."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.face import BASE

ROOT = Path(__file__).parents[2]
SCRIPT = """
import asyncio, sys
from pathlib import Path
import uvicorn
from server.shutdown import Shutdown
from tests.support.engine import FakeWorker
from tests.support.face import make_face

async def main(folder: Path, drain_s: float) -> int:
    face = make_face(folder, FakeWorker(delay_s=0.05))
    server = uvicorn.Server(uvicorn.Config(face.app, port=0, log_level="critical", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    async def stop() -> None:
        face.worker.stopped = True
        face.worker.running.clear()
    shutdown = Shutdown(server, face.services.lifecycle, drain_s, stop)
    shutdown.install()
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving
    face.registry.close()
    return 1 if shutdown.forced else 0

sys.exit(asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2]))))
"""


class Running:
    """A server process and a client to it."""

    def __init__(self, folder: Path, drain_s: float) -> None:
        command = [sys.executable, "-c", SCRIPT, str(folder), str(drain_s)]
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
