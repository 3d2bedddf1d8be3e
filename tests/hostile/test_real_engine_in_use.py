"""Lives of adapters, odd requests and clients that leave, on a real engine with room for two adapters on the device.

After each, the base's weights, the canary's answer and all that is held are what they were.
"""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.manifest import AdapterId
from adapters.tenant_catalog import TenantCatalog
from tests.support.adapters import write_adapter
from tests.support.http import eventually
from tests.support.invariants import check_error
from tests.support.real_engine_server import LOUD, RealEngineServer, real_engine_server
from tests.support.real_engine_watch import LENGTH, PROMPT, said
from tests.support.server_rig import BASE

ADAPTER_BYTES = 4 * 4 * 2 * ((32 + 32) + (32 + 16))
"""Rank 4 on the queries and values of two layers, in float32."""
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngineServer]:
    room = 2 * ADAPTER_BYTES + ADAPTER_BYTES // 2
    with real_engine_server(tmp_path_factory.mktemp("real"), device_bytes=room, host_bytes=2 * room) as made:
        yield made


def remaining_tokens(reply: httpx.Response) -> list[int]:
    """The tokens of the rest of a stream, which must end as streams end."""
    events = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    chunks = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return [token for choice in chunks for token in choice.get("token_ids") or ()]


def delete(real: RealEngineServer, *names: str) -> None:
    for name in names:
        assert real.http.delete(f"/v1/adapters/{name}").is_success


def test_d40_a_stream_outlives_its_adapter_and_nothing_else_of_it_stays(real: RealEngineServer, tmp_path: Path) -> None:
    id = AdapterId(real.add(tmp_path, "gone", seed=40))
    begin = said(real.http, "gone", length=60)
    body = {"model": "gone", "prompt": list(PROMPT), "max_tokens": 240, "stream": True} | GREEDY
    real.runner.rest(steps=40)
    with real.http.stream("POST", "/v1/completions", json=body) as reply, real.live.client() as other:
        assert other.delete("/v1/adapters/gone").status_code == 202, "it runs"
        assert other.post("/v1/completions", json=body).json()["error"]["code"] == "model_not_found"
        assert id in real.rig.store.ids() and id in real.watch._runner._bank
        tokens = remaining_tokens(reply)
    assert (len(tokens), tokens[:60]) == (240, begin)
    eventually(lambda: id not in real.watch._runner._bank and id not in real.rig.store.ids())
    real.invariants.check()


def test_d41_no_cached_prefix_of_the_old_version_is_taken_for_the_new(real: RealEngineServer, tmp_path: Path) -> None:
    real.add(tmp_path, "moved", seed=1)
    old = said(real.http, "moved@1", length=40)
    assert real.http.put("/v1/adapters/moved/aliases/prod", json={"version": 1}).is_success
    body = {"model": "moved@prod", "prompt": list(PROMPT), "max_tokens": 40, "stream": True} | GREEDY
    real.runner.rest(steps=20)
    with real.http.stream("POST", "/v1/completions", json=body) as reply, real.live.client() as other:
        first = real.rig.catalog.resolve("moved@1").id
        real.add(tmp_path, "moved", seed=2)
        assert other.put("/v1/adapters/moved/aliases/prod", json={"version": 2}).is_success
        after = said(other, "moved@prod", length=40)
        assert reply.headers["x-rootstock-adapter"] == first
        assert remaining_tokens(reply) == old
    assert after != old
    delete(real, "moved")
    real.add(tmp_path, "fresh", seed=2)
    assert said(real.http, "fresh", prompt=PROMPT, length=40) == after, "as where nothing was cached before"
    delete(real, "fresh")
    real.invariants.check()


def test_d43_a_content_that_two_tenants_have_outlives_one_of_them(real: RealEngineServer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, real.base.shape, seed=3, scale=LOUD)
    theirs = TenantCatalog(real.rig.catalog, "acme")
    version, _ = theirs.add_directory("same", folder)
    assert real.upload(folder, "mine").json()["id"] == version.id
    before = said(real.http, "mine")
    theirs.delete("same")
    real.invariants.check()
    assert said(real.http, "mine") == before
    delete(real, "mine")
    eventually(lambda: version.id not in real.watch._runner._bank)
    real.invariants.check()


def test_d45_five_adapters_in_room_for_two_say_what_each_says_alone(real: RealEngineServer, tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(5)]
    for seed, name in enumerate(names):
        real.add(tmp_path, name, seed=10 + seed)
    alone = {name: said(real.http, name) for name in names}
    assert len({tuple(tokens) for tokens in alone.values()}) == len(names)
    evictions = real.worker._engine.tiers.residency.changes

    def ask(name: str) -> tuple[str, list[int]]:
        with real.live.client() as http:
            return name, said(http, name)

    with ThreadPoolExecutor(5) as pool:
        replies = list(pool.map(ask, names * 8))
    assert [tokens for _, tokens in replies] == [alone[name] for name, _ in replies]
    assert real.worker._engine.tiers.residency.changes > evictions + 10, "they did push each other out"
    real.invariants.check()
    delete(real, *names)
    real.invariants.check()


def refused(real: RealEngineServer, param: str, **fields: Any) -> None:
    reply = real.http.post("/v1/completions", json={"model": "canary", "prompt": [1, 2], "max_tokens": 2} | fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "validation_error", param), reply.text
    real.invariants.check(reply)


@pytest.mark.parametrize("bias", [{"-1": 100}, {"272": 100}, {"99999999999999999999": 1}, {"a": 1}, {"1": 1e9}])
def test_e51_biases_of_tokens_that_are_not_there_reach_no_row(real: RealEngineServer, bias: dict[str, float]) -> None:
    refused(real, "logit_bias.1" if "1" in bias else "logit_bias", logit_bias=bias)


def test_e51_the_last_token_can_be_biased(real: RealEngineServer) -> None:
    body = {"model": BASE, "prompt": [1, 2], "max_tokens": 3, "logit_bias": {"271": 100}} | GREEDY
    assert real.http.post("/v1/completions", json=body).json()["choices"][0]["token_ids"] == [271] * 3
    real.invariants.check()


@pytest.mark.parametrize("prompt", [[-1], [272], [1, 2**31], [2**63], [[1], [-5]]], ids=str)
def test_e60_tokens_that_are_none_reach_no_embedding(real: RealEngineServer, prompt: Any) -> None:
    refused(real, "prompt", prompt=prompt)


def test_e60_the_last_row_of_the_embedding_is_a_token(real: RealEngineServer) -> None:
    assert len(said(real.http, BASE, prompt=(271,))) == LENGTH
    real.invariants.check()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["canary", BASE])
def test_f61_a_hangup_gives_back_blocks_slots_and_references(real: RealEngineServer, model: str, stream: bool) -> None:
    fields = {"model": model, "prompt": [1, 2, 3], "max_tokens": 240, "n": 4, "stream": stream, "ignore_eos": True}
    body = json.dumps(fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with socket.create_connection(("127.0.0.1", int(real.live.url.rsplit(":", 1)[1]))) as leaving:
        leaving.sendall(f"{head}\r\n\r\n".encode() + body)
        eventually(lambda: real.worker.stats().running == 4)
    real.invariants.check()


def test_f66_an_engine_that_raises_in_mid_stream_keeps_nothing(real: RealEngineServer) -> None:
    body = {"model": "canary", "prompt": [4, 5, 6], "max_tokens": 240, "stream": True} | GREEDY
    real.runner.rest(steps=20)
    with real.http.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith("data: ")
        real.runner.broken = True
        rest = [line for line in lines if line]
    real.runner.broken = False
    event = rest[-1].removeprefix("data: ")
    assert json.loads(event)["error"]["code"] == "step_failed"
    check_error(event)
    assert "data: [DONE]" not in rest
    real.invariants.check()
