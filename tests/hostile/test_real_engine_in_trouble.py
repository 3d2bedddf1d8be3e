"""A real engine behind a real server that runs out of blocks, out of memory, or out of order: cases G71 and G72.

After each, the base's weights, the canary's answer and all that is held are what they were.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from adapters.bank import Bank, Loaded
from adapters.manifest import AdapterId
from tests.support.http import eventually
from tests.support.invariants import check_error
from tests.support.real_engine_server import BLOCK, RealEngineServer, real_engine_server
from tests.support.real_engine_watch import said
from tests.support.server_rig import BASE

LONG, BLOCKS = 40, 48


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngineServer]:
    with real_engine_server(tmp_path_factory.mktemp("real"), blocks=BLOCKS) as made:
        yield made


def client(real: RealEngineServer) -> httpx.Client:
    """One that waits for as long as a machine may take that is busy with others' work."""
    http = real.live.client()
    http.timeout = httpx.Timeout(120)
    return http


def ask(real: RealEngineServer, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": [4, 5, 6], "max_tokens": LONG, "temperature": 0, "ignore_eos": True}
    with client(real) as http:
        return http.post("/v1/completions", json=body | fields)


def test_g71_when_blocks_run_out_nobody_gets_another_token(real: RealEngineServer) -> None:
    """Eight answers that would take half as many blocks again as there are, on the base and on an adapter."""
    asked = [(model, (7, first, 3)) for model in ("canary", BASE) for first in (11, 22, 33, 44)]
    assert len(asked) * (LONG + 3) > 1.5 * BLOCKS * BLOCK
    alone = [said(real.http, *each, length=LONG) for each in asked]
    real.runner.preempted = 0

    def again(each: tuple[str, tuple[int, ...]]) -> list[int]:
        with client(real) as http:
            return said(http, *each, length=LONG)

    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(again, asked)) == alone
    assert real.runner.preempted > 0, "there were enough of them"
    real.invariants.check()


class Crammed:
    """A bank on a device that has no memory left for one more adapter."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self.device, self.asked = bank.device, 0

    def place(self, adapter: Loaded) -> None:
        self.asked += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    def drop(self, id: AdapterId) -> None:
        self._bank.drop(id)


def test_g71_a_device_out_of_memory_fails_that_load_and_no_other_request(
    real: RealEngineServer, tmp_path: Path
) -> None:
    real.add(tmp_path, "late", seed=4)
    supply: Any = real.worker._engine.tiers._mover
    kept = supply._bank
    before = said(real.http, "canary", length=LONG)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(ask, real, model, return_token_ids=True) for model in ("canary", BASE)]
        eventually(lambda: real.worker.stats().running == 2)
        supply._bank = crammed = Crammed(kept)
        refused = ask(real, "late")
        supply._bank = kept
        replies = [each.result() for each in running]
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "adapter_unavailable"), refused.text
    assert crammed.asked == 1, "it was read, and did not fit"
    check_error(refused.text, "CUDA")
    assert [each.status_code for each in replies] == [200, 200]
    assert said(real.http, "canary", length=LONG) == before
    real.invariants.check()
    assert ask(real, "late", max_tokens=2).status_code == 200, "once there is room"
    real.invariants.check()
    assert real.http.delete("/v1/adapters/late").is_success
    real.invariants.check()


def test_g72_an_engine_that_fails_is_replaced_behind_the_same_door(real: RealEngineServer) -> None:
    """Both answers under way are told, streamed or not; then the server says to wait; then all is as before."""
    length = BLOCKS * BLOCK // 2 - BLOCK  # as long as two may be at once: neither ends before the other begins
    body = {"model": "canary", "prompt": [4, 5, 6], "max_tokens": length, "ignore_eos": True, "stream": True}
    real.next.clear()
    with ThreadPoolExecutor(1) as pool, real.http.stream("POST", "/v1/completions", json=body) as streamed:
        lines = streamed.iter_lines()
        assert next(lines).startswith("data: {")
        whole = pool.submit(ask, real, BASE, max_tokens=length)
        eventually(lambda: real.worker.stats().running == 2)
        real.worker._engine.scheduler.schedule = None  # type: ignore[method-assign,assignment]
        rest = [line.removeprefix("data: ") for line in lines if line]
        ended = whole.result()
    assert json.loads(rest[-1])["error"]["code"] == "engine_failed" and "[DONE]" not in rest
    assert (ended.status_code, ended.json()["error"]["code"]) == (503, "engine_failed")
    waiting = ask(real, "canary", max_tokens=1)
    assert (waiting.status_code, waiting.json()["error"]["code"]) == (503, "engine_restarting")
    for text in (rest[-1], ended.text, waiting.text):
        check_error(text)
    assert int(ended.headers["retry-after"]) > 0 and int(waiting.headers["retry-after"]) > 0
    assert real.http.get("/livez").json()["status"] == "restarting" and real.http.get("/readyz").status_code == 503
    real.next.set()
    eventually(lambda: real.http.get("/readyz").status_code == 200)
    assert real.http.get("/livez").json() == {"status": "alive", "engine_restarts": 1}
    real.invariants.check(real.http.get("/v1/models"))
