"""F62: clients that read nothing, too little, or as they should, beside each other and on the real engine's step loop.

A token's text is long here, so that what the system keeps for a client is full after a few dozen tokens.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from structlog.testing import capture_logs

from engine.events import Finished
from engine.sequence import FinishReason
from engine.worker import EngineWorker
from server.connections import Bounds
from server.meter import Meter
from server.ports import Limits
from server.usage.ledger import Ledger, Usage, UsageFilter
from server.usage.writer import LedgerWriter
from tests.support.engine_fakes import Bench
from tests.support.http import LiveServer, eventually, serve
from tests.support.server_rig import BASE, ServerRig, make_rig

TOKENS = 190
MAX_UNREAD = 40
WIDTH = 8192
EXPECTED = "".join(chr(ord("a") + token % 26) for token in range(4, 4 + TOKENS))
"""Of each token of an answer, one letter."""
PATIENT_S = 60.0


def wide(ids: Sequence[int]) -> str:
    """Every token as 8 KiB of one letter."""
    return "".join(chr(ord("a") + token % 26) * WIDTH for token in ids)


@dataclass
class Reader:
    """One answer, a stream unless `asked` otherwise. The client's system keeps about `room` bytes of it unread."""

    live: LiveServer
    asked: dict[str, object] = field(default_factory=dict)
    room: int = 8192
    received: bytes = b""
    connection: socket.socket = field(default_factory=socket.socket)

    def __post_init__(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.room)
        self.connection.settimeout(20)
        self.connection.connect(("127.0.0.1", int(self.live.url.rsplit(":", 1)[1])))
        asked = {"model": BASE, "prompt": [1, 2, 3], "max_tokens": TOKENS, "stream": True} | self.asked
        body = json.dumps(asked).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        self.connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)

    def read(self, at_most: int = 1 << 20) -> bytes:
        """What comes next; nothing at the end, however that came."""
        with contextlib.suppress(ConnectionResetError):
            more = self.connection.recv(at_most)
            self.received += more
            return more
        return b""

    def read_on(self) -> None:
        while self.read():
            pass

    @property
    def events(self) -> list[str]:
        """Those that are whole."""
        lines = self.received.decode().split("\r\n")
        return [
            line.strip().removeprefix("data: ") for line in lines if line.startswith("data: ") and line[-2:] == "\n\n"
        ]

    @property
    def text(self) -> str:
        """Of each token, one letter."""
        chunks = [json.loads(event) for event in self.events if event != "[DONE]"]
        return "".join(choice["text"][::WIDTH] for chunk in chunks for choice in chunk.get("choices", ()))


@contextlib.contextmanager
def reader(served: "EngineOverHttp", room: int = 8192, **asked: object) -> Iterator[Reader]:
    made = Reader(served.live, asked, room)
    with made.connection:
        yield made


@dataclass
class EngineOverHttp:
    """The real engine over a fake model, behind HTTP, with a ledger."""

    bench: Bench
    worker: EngineWorker
    rig: ServerRig
    live: LiveServer
    ledger: Ledger

    def reasons(self) -> list[FinishReason]:
        """In the engine's events, which the metrics count."""
        return sorted(event.reason for event in self.bench.events if isinstance(event, Finished))

    def rows(self, count: int) -> list[Usage]:
        """Of the ledger, once there are `count`."""
        eventually(lambda: len(self.ledger.page(UsageFilter())) >= count)
        return sorted(self.ledger.rows(UsageFilter()), key=lambda row: row.finish_reason)

    def ended(self) -> int:
        return len(self.bench.of(Finished))

    def dribble(self, reader: Reader, until_ended: int) -> None:
        """Read a quarter of a token a step, however long steps take, until so many requests have ended."""
        while self.ended() < until_ended:
            if len(reader.received) < len(self.bench.runner.plans) * WIDTH // 4:
                reader.read(1024)
            else:
                time.sleep(0.002)

    def check_empty(self) -> None:
        """Nothing of anybody is left."""
        eventually(lambda: self.worker.stats().running == 0 and self.worker.stats().blocks_used == 0)
        eventually(lambda: self.rig.services.lifecycle.in_flight == 0 and not self.worker._outputs)
        eventually(lambda: not self.live.connections)


@contextlib.contextmanager
def opened(folder: Path, read_s: float) -> Iterator[EngineOverHttp]:
    """`read_s` is how long a client may take next to nothing."""
    bench = Bench(blocks=256, batch_tokens=64, decode=wide)
    bench.runner.delay_s = 0.01
    worker = EngineWorker(bench.engine, max_unread=MAX_UNREAD)
    ledger = Ledger(f"sqlite:///{folder / 'usage.sqlite'}")
    writer = LedgerWriter(ledger)
    rig = make_rig(folder, worker, Limits(200), meter=Meter(writer=writer))  # type: ignore[arg-type]

    async def start() -> None:
        worker.start()

    with serve(rig.app, Bounds(read_s=read_s)) as live:
        live.call(start())
        yield EngineOverHttp(bench, worker, rig, live, ledger)
        live.call(worker.stop(1))
    rig.registry.close()
    writer.close()
    ledger.close()


def test_f62_readers_of_all_kinds_beside_each_other(tmp_path: Path) -> None:
    """One reads nothing and one dribbles: their requests end when too much waits for them, which the last event tells
    whoever gets there. The third reads, and is as if it were alone."""
    with opened(tmp_path, PATIENT_S) as served, capture_logs() as log:
        with reader(served) as none, reader(served) as dribbling, reader(served, room=1 << 20) as reading:
            thread = threading.Thread(target=reading.read_on)
            thread.start()
            served.dribble(dribbling, until_ended=3)
            thread.join(20)
            dribbling.read_on()
            none.read(WIDTH)
        rows = served.rows(3)
        served.check_empty()
    assert reading.text == EXPECTED and reading.events[-1] == "[DONE]"
    assert json.loads(dribbling.events[-1])["error"]["code"] == "reader_too_slow"
    assert MAX_UNREAD < len(dribbling.text) < TOKENS and EXPECTED.startswith(dribbling.text)

    assert served.reasons() == [FinishReason.ABORT, FinishReason.ABORT, FinishReason.LENGTH]
    assert [row.finish_reason for row in rows] == ["abort", "abort", "length"], "one each"
    assert len(dribbling.text) in {row.generated_tokens for row in rows[:2]}, "all that was made for it was read"
    assert all(row.generated_tokens < TOKENS for row in rows[:2]) and rows[2].generated_tokens == TOKENS
    assert [entry["reason"] for entry in log if entry["event"].endswith("_cut")] == ["reader_too_slow"]


def test_f62_who_reads_nothing_is_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path, read_s=0.5) as served, capture_logs() as log, reader(served) as none:
        (row,) = served.rows(1)
        served.check_empty()
        none.read_on()
    assert EXPECTED.startswith(none.text) and len(none.text) < row.generated_tokens < TOKENS
    assert "error" not in none.events[-1] != "[DONE]", "what was cut off does not look whole"
    assert served.reasons() == [FinishReason.ABORT] and row.finish_reason == "abort"
    assert [entry["event"] for entry in log if entry["event"].endswith("_cut")] == ["client_cut"]


def test_f62_an_answer_of_many_choices_ends_with_the_first_that_waits_too_long(tmp_path: Path) -> None:
    with opened(tmp_path, PATIENT_S) as served, reader(served, n=3) as dribbling:
        served.dribble(dribbling, until_ended=3)
        dribbling.read_on()
        (row,) = served.rows(1)
        served.check_empty()
    assert json.loads(dribbling.events[-1])["error"]["code"] == "reader_too_slow"
    assert served.reasons() == [FinishReason.ABORT] * 3 and row.finish_reason == "abort"
    assert row.generated_tokens > len(dribbling.text), "what waited for the other choices was made, too"


def test_f62_a_whole_answer_that_nobody_reads_is_given_up(tmp_path: Path) -> None:
    """It has been made, and is told as that; but it does not wait in memory, nor does the connection stay, for ever."""
    with opened(tmp_path, read_s=0.5) as served, capture_logs() as log, reader(served, stream=False) as none:
        (row,) = served.rows(1)
        assert served.live.connections == 1
        served.check_empty()
        none.read_on()
    assert (row.finish_reason, row.generated_tokens) == ("length", TOKENS)
    assert len(none.received) < TOKENS * WIDTH
    assert [entry["event"] for entry in log if entry["event"].endswith("_cut")] == ["client_cut"]


def test_f62_a_whole_answer_is_read_as_slowly_as_it_likes_within_the_pace(tmp_path: Path) -> None:
    with opened(tmp_path, read_s=0.8) as served, reader(served, stream=False) as slow:
        began = time.monotonic()
        while time.monotonic() - began < 4:
            slow.read(4096)
            time.sleep(0.02)
        slow.read_on()
        served.check_empty()
    body = json.loads(slow.received.partition(b"\r\n\r\n")[2])
    assert len(body["choices"][0]["text"]) == TOKENS * WIDTH
