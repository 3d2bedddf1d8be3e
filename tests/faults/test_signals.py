"""SIGTERM on `rootstock serve` itself, with streams under way: the first drains, the second ends at once and quietly.

What a drain waits for is tests/server/test_shutdown.py's, on a server of a few lines.
"""

import contextlib
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from loader.base import load
from loader.source import resolve
from server.usage.ledger import Ledger, UsageFilter
from tests.support.adapters import write_adapter
from tests.support.http import eventually
from tests.support.invariants import check_error
from tests.support.models import tiny_model_dir
from tests.support.served import Served, served
from tests.support.served_watch import ServedWatch

BUDGETS = ("--kv-cache-memory=16MiB", "--adapter-device-memory=8MiB", "--adapter-host-memory=8MiB")


@contextlib.contextmanager
def streaming(running: Served, choices: int, tokens: int) -> Iterator[Iterator[str]]:
    """The events of an answer of many steps, the first of which has come."""
    body = {"model": "", "prompt": [5, 9], "max_tokens": tokens, "n": choices, "ignore_eos": True, "stream": True}
    with running.client() as http, http.stream("POST", "/v1/completions", json=body) as reply:
        assert reply.status_code == 200
        events = (line for line in reply.iter_lines() if line)
        assert next(events).startswith("data: {")
        yield events


def test_g67_streams_go_on_after_the_first_signal_and_end_quietly_with_the_second(tmp_path: Path) -> None:
    """The next server on the same data answers as this one did, and finds all in order."""
    logs, model, data = tmp_path / "logs", tiny_model_dir("llama", tmp_path), tmp_path / "data"
    logs.mkdir()
    log = logs / "first"
    canary = write_adapter(tmp_path / "canary", load(resolve(str(model), tmp_path), dtype="float32").shape, scale=0.3)
    flags = ("--base", str(model), "--dtype", "float32", "--data-dir", str(data), "--adapter", f"canary={canary}")
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(served(*flags, *BUDGETS, "--log-format=json", log=log))
        http = stack.enter_context(running.client())
        watch = ServedWatch(http, model, data, "canary", logs)
        long, _ = (stack.enter_context(streaming(running, 16, 400)) for _ in range(2))
        short = stack.enter_context(streaming(running, 1, 100))
        running.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while http.get("/readyz").status_code != 503:
            assert time.monotonic() < deadline
        assert http.get("/livez").status_code == 200
        refused = http.post("/v1/completions", json={"model": "", "prompt": [5], "max_tokens": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) > 0
        check_error(refused.text)
        assert list(short)[-1] == "data: [DONE]", "what ran goes on"
        running.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert running.process.wait(60) == 1
        assert time.monotonic() - began < 10, "the drain would have taken 30 seconds"
        with contextlib.suppress(httpx.HTTPError):
            assert "data: [DONE]" not in list(long), "what was cut off does not look whole"
    written = log.read_text()
    assert "Traceback" not in written and "Exception" not in written, written
    watch.check_data()
    with served(*flags, *BUDGETS, log=logs / "second") as again, again.client() as http:
        watch.check(http)


def test_g67_a_second_signal_while_the_ledger_is_written_is_as_any_other(tmp_path: Path) -> None:
    """The server has let go of its clients and its loop, and waits for a database that somebody else writes to."""
    log = tmp_path / "log"
    model = tiny_model_dir("llama", tmp_path)
    data = tmp_path / "data"
    flags = ("--base", str(model), "--dtype", "float32", "--data-dir", str(data), "--log-format", "json")
    with served(*flags, *BUDGETS, "--kernels=off", log=log) as running, running.client() as http:
        with sqlite3.connect(data / "usage.sqlite", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            asked = {"model": "", "prompt": [5], "max_tokens": 1}
            assert http.post("/v1/completions", json=asked).status_code == 200
            running.process.send_signal(signal.SIGTERM)
            eventually(lambda: '"stopped"' in log.read_text())
            time.sleep(0.3)  # it says so a moment before its loop is closed
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert running.process.poll() is None, "what was used is not thrown away"
            other.execute("ROLLBACK")
        other.close()
        assert running.process.wait(60) == 1
    with contextlib.closing(Ledger(f"sqlite:///{data / 'usage.sqlite'}")) as ledger:
        assert [row.finish_reason for row in ledger.rows(UsageFilter())] == ["length"]
    assert "Traceback" not in log.read_text()
