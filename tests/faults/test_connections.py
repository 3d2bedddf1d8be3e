"""F61 to F65: clients that hang up, do not read, connect in crowds, dribble, or contradict themselves."""

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import uvloop

from engine.worker import EngineWorker
from server.connections import AHEAD, OTHER_FILES, RESERVE, Bounds, affordable, raise_file_limit
from server.ports import Limits
from tests.support.engine import FakeWorker
from tests.support.engine_fakes import Bench
from tests.support.http import LiveServer, eventually, serve
from tests.support.idle_connections import SPARE
from tests.support.invariants import check_disk, check_error
from tests.support.reply_checks import check_after
from tests.support.server_rig import BASE, ServerRig, make_rig
from tests.support.upload_steps import read_reply

ROOT = Path(__file__).parents[2]
COMPLETION = {"model": BASE, "prompt": "Once", "max_tokens": 4}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ServerRig]:
    made = make_rig(tmp_path, FakeWorker(delay_s=0.01, max_model_len=1_000_000), Limits(1_000_000, idle_s=0.4))
    yield made
    made.registry.close()


def connect(live: LiveServer) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", int(live.url.rsplit(":", 1)[1])))
    made.settimeout(20)
    return made


def refusal_of(connection: socket.socket) -> tuple[int, str]:
    """The status and the error's code of one refusal, which ends with the connection."""
    reply = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            reply += chunk
    head, _, body = reply.partition(b"\r\n\r\n")
    check_error(body.decode())
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def well(live: LiveServer, rig: ServerRig) -> None:
    """The server is as it was, for whoever comes next."""
    with live.client() as client:
        check_after(client, rig)


def ask(live: LiveServer) -> int:
    with live.client() as client:
        return client.post("/v1/completions", json=COMPLETION).status_code


@pytest.mark.parametrize("stream", [True, False])
def test_f61_a_hangup_gives_back_the_engines_blocks(tmp_path: Path, stream: bool) -> None:
    bench = Bench()
    bench.runner.delay_s = 0.01
    worker = EngineWorker(bench.engine)
    rig = make_rig(tmp_path, worker, Limits(200))  # type: ignore[arg-type]
    with serve(rig.app) as live:

        async def start() -> None:
            worker.start()

        live.call(start())
        body = json.dumps(COMPLETION | {"prompt": [1, 2, 3], "max_tokens": 190, "stream": stream}).encode()
        with connect(live) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            eventually(lambda: worker.stats().blocks_used > 0)
        eventually(lambda: worker.stats().running == 0 and worker.stats().blocks_used == 0)
        assert ask(live) == 200
        eventually(lambda: worker.stats().blocks_used == 0 and rig.services.lifecycle.in_flight == 0)
        check_disk(rig)
        live.call(worker.stop(1))
    rig.registry.close()


@pytest.fixture
def many_files() -> Iterator[None]:
    """As `rootstock serve` has them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_file_limit()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Processes that hold idle connections."""

    processes: "list[subprocess.Popen[str]]"

    def count(self) -> int:
        """What each says next, together: first how many it has opened, and then how many were refused so far."""
        return sum(int(process.stdout.readline()) for process in self.processes if process.stdout is not None)

    def refused(self) -> int:
        for process in self.processes:
            print(file=process.stdin, flush=True)
        return self.count()


@contextlib.contextmanager
def crowd(live: LiveServer, count: int) -> Iterator[Crowd]:
    """So many idle connections, in as many processes as it takes under the system's limit on files for one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    each = count if hard == resource.RLIM_INFINITY else min(count, hard - SPARE)
    shares = [min(each, count - taken) for taken in range(0, count, each)]
    command = [sys.executable, "-m", "tests.support.idle_connections", live.url.rsplit(":", 1)[1]]
    piped = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    made = Crowd([piped([*command, str(share)]) for share in shares])
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("most", [50, 2048])
def test_f63_idle_connections_make_room_for_requests(rig: ServerRig, most: int, many_files: None) -> None:
    """Ten thousand, on the loop that `rootstock serve` runs; the crowd itself asks for its health as it comes in."""
    bounds = Bounds(affordable(most))
    with serve(rig.app, bounds, uvloop.new_event_loop) as live, crowd(live, 10_000) as idle:
        assert idle.count() == 10_000
        assert ask(live) == 200
        eventually(lambda: idle.refused() >= 10_000 - bounds.connections)
        well(live, rig)


def test_f63_there_are_no_more_connections_than_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        assert affordable(100) == 100
        assert affordable(2048) == 1024 - RESERVE - OTHER_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        assert 0 < affordable(2048) < 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_f63_when_all_are_busy_the_rest_is_refused_and_probes_answer(rig: ServerRig) -> None:
    rig.worker.delay_s = 0.05
    with serve(rig.app, Bounds(connections=20)) as live, contextlib.ExitStack() as stack:
        body = json.dumps(COMPLETION | {"max_tokens": 10_000}).encode()
        for _ in range(20):
            busy = stack.enter_context(connect(live))
            busy.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        eventually(lambda: len(rig.worker.running) == 20)
        with live.client() as client:
            refused = client.post("/v1/completions", json=COMPLETION)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "too_many_connections"
        with live.client() as client:
            assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        stack.close()
        well(live, rig)


def test_f64_a_head_that_dribbles_is_408(rig: ServerRig) -> None:
    with serve(rig.app, Bounds(head_s=0.4)) as live, connect(live) as silent, connect(live) as dribbling:
        for byte in HEAD[:12]:
            dribbling.sendall(bytes([byte]))
            time.sleep(0.02)
        assert refusal_of(dribbling) == refusal_of(silent) == (408, "head_timeout")
        well(live, rig)


def test_f64_a_body_that_dribbles_is_408(rig: ServerRig) -> None:
    with serve(rig.app) as live, connect(live) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(500):
                connection.sendall(b"1\r\n \r\n")
                time.sleep(0.02)
        assert refusal_of(connection) == (408, "body_timeout"), "it was told before it was cut off"
        well(live, rig)


@pytest.mark.parametrize("ended", [True, False])
def test_f64_a_head_of_64_kilobytes_is_431(rig: ServerRig, ended: bool) -> None:
    with serve(rig.app) as live, connect(live) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-Much: y\r\n" * 6000 + b"\r\n" * ended)
        assert refusal_of(connection) == (431, "head_too_large")
        well(live, rig)


ENDLESS = {
    "trailers": b"0\r\n" + b"X-Much: y\r\n" * 60_000,
    "one trailer": b"0\r\nX-Much: " + b"y" * (640 << 10),
    "a chunk's extension": b"1;" + b"y" * (640 << 10),
}
"""More than the server reads at once."""

UNREAD = b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
"""It is answered, whatever becomes of its body."""


@pytest.mark.parametrize("what", ENDLESS)
def test_f64_what_comes_beside_a_body_is_bounded_as_a_head_is(rig: ServerRig, what: str) -> None:
    """Behind an answer it is told; a request that waits for its body is cut off, sooner than for being slow."""
    with serve(rig.app) as live, connect(live) as answered, connect(live) as asking:
        answered.sendall(UNREAD)
        assert read_reply(answered).status_code == 200
        asking.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for connection in (answered, asking):
            with contextlib.suppress(OSError):
                connection.sendall(ENDLESS[what])
        assert refusal_of(answered) == (431, "head_too_large")
        with contextlib.suppress(ConnectionResetError):
            assert asking.recv(65536) == b""
        well(live, rig)


def test_f64_who_falls_silent_in_a_body_that_was_not_asked_for_is_let_go(rig: ServerRig) -> None:
    with serve(rig.app, keep_alive_s=1) as live, connect(live) as connection:
        connection.sendall(UNREAD)
        assert read_reply(connection).status_code == 200
        connection.sendall(b"1\r\nx\r\n")
        assert connection.recv(65536) == b""
        well(live, rig)


def test_f65_pipelined_requests_are_answered_in_order(rig: ServerRig) -> None:
    with serve(rig.app) as live, connect(live) as connection:
        get = b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n"
        last = get % (b"/livez", b"Connection: close\r\n")
        connection.sendall(get % (b"/version", b"") + get % (b"/livez", b"") * (AHEAD - 1) + last)
        reply = b""
        while chunk := connection.recv(65536):
            reply += chunk
        well(live, rig)
    assert reply.count(b"HTTP/1.1 200") == 1 + AHEAD and reply.index(b'"base"') < reply.index(b'"status"')


def test_f65_who_sends_too_many_ahead_of_their_answers_is_cut_off(rig: ServerRig) -> None:
    body = json.dumps(COMPLETION | {"max_tokens": 100_000}).encode()
    get = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with serve(rig.app) as live, connect(live) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + get * (AHEAD + 1))
        assert connection.recv(65536) == b""
        well(live, rig)
