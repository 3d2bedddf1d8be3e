"""kill -9, and the next start: everything that was answered is still there, what was resident is warm again, and what
the disk has spoilt meanwhile is found, told and repaired."""

import contextlib
import csv
import io
import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from adapters.manifest import AdapterId
from adapters.registry import Registry
from loader.base import load
from loader.source import resolve
from server.usage.ledger import Ledger, UsageStart
from tests.support.adapters import write_adapter
from tests.support.http import eventually
from tests.support.invariants import check_error
from tests.support.models import tiny_model_dir
from tests.support.served import Served, run, served
from tests.support.served_watch import ServedWatch

REFS = ("red", "red@prod")
UNDER_WAY = {"red@prod": "red@1", "red": "red@2"}


@dataclass(frozen=True, slots=True)
class Restarted:
    """A client of the second server on `data`; `said` is what the first one answered, `used` what it wrote down of
    that, and `lost` what it was killed in the middle of, from request id to adapter and what was noted of its answer.

    One bit of `blue` has flipped between.
    """

    server: Served
    http: httpx.Client
    said: dict[str, list[int]]
    used: list[dict[str, Any]]
    lost: dict[str, tuple[str, int]]
    blue: Path
    data: Path
    watch: ServedWatch


@pytest.fixture(autouse=True)
def _as_before(restarted: Restarted) -> Iterator[None]:
    """After each case: the canary and the base answer as before the kill, and all that is kept is in order."""
    yield
    restarted.watch.check(restarted.http)


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    root = tmp_path_factory.mktemp("restart")
    model = tiny_model_dir("llama", root)
    shape = load(resolve(str(model), root), dtype="float32").shape
    folders = [write_adapter(root / str(n), shape, seed=n, scale=0.3) for n in range(4)]
    logs = root / "logs"
    logs.mkdir()
    flags = ("--base", str(model), "--dtype", "float32", "--data-dir", str(root / "data"))
    budgets = ("--kv-cache-memory=8MiB", "--adapter-device-memory=8MiB", "--adapter-host-memory=8MiB")
    with served(*flags, *budgets, log=logs / "first") as first, first.client() as http:
        for folder, name in zip(folders, ("red", "red", "blue", "canary"), strict=True):
            assert _upload(http, folder, name).status_code == 201
        assert http.put("/v1/adapters/red/aliases/prod", json={"version": 1}).is_success
        said = {ref: _said(_complete(http, ref)) for ref in REFS}
        assert said["red"] != said["red@prod"]
        blue, red = (http.get(f"/v1/adapters/{name}").json()["id"] for name in ("blue", "red"))
        eventually(lambda: _noted(root / "data", red), within_s=30)
        eventually(lambda: len(_used(http)) == len(REFS), within_s=30)
        used = _used(http)
        watch = ServedWatch(http, model, root / "data", "canary", logs, spoilt=AdapterId(blue))
        with contextlib.ExitStack() as streams:
            lost = {streams.enter_context(_begun(http, model)): told for model, told in UNDER_WAY.items()}
            eventually(lambda: _noted_tokens(root / "data").keys() == lost.keys())
            eventually(lambda: all(_noted_tokens(root / "data").values()))
            first.process.kill()
            first.process.wait()
        noted = _noted_tokens(root / "data")
    _flip(root / "data" / "adapters", blue)
    with served(*flags, *budgets, log=logs / "second") as second, second.client() as http:
        ended = {id: (adapter, noted[id]) for id, adapter in lost.items()}
        yield Restarted(second, http, said, used, ended, folders[2], root / "data", watch)


def test_g68_a_killed_server_comes_back_as_it_was(restarted: Restarted) -> None:
    http = restarted.http
    eventually(lambda: http.get("/v1/adapters/red").json()["state"] == "device")
    assert {ref: _said(_complete(http, ref)) for ref in REFS} == restarted.said
    assert [version["version"] for version in http.get("/v1/adapters/red/versions").json()["data"]] == [1, 2]


def test_i86_a_killed_server_has_told_every_request_once(restarted: Restarted) -> None:
    truth = [(3, len(tokens)) for tokens in restarted.said.values()]
    assert [(row["prompt_tokens"], row["generated_tokens"]) for row in restarted.used] == truth
    reply = _complete(restarted.http, "red")
    eventually(lambda: _used(restarted.http)[-1]["id"] == reply.headers["x-request-id"])
    rows = _used(restarted.http)
    assert rows[: len(truth)] == restarted.used
    assert len({row["id"] for row in rows}) == len(rows)


def test_i86_what_a_kill_ended_is_told_as_lost_with_its_prompt_and_what_was_noted(restarted: Restarted) -> None:
    """By the route and by the command, as CSV and as JSON; both read while the server runs, and end nothing of it."""
    with _begun(restarted.http, "red") as running:
        eventually(lambda: [begun.id for begun in _under_way(restarted.data)] == [running])
        csv_text, json_text = (
            run("usage", "--data-dir", str(restarted.data), "--format", format).stdout for format in ("csv", "json")
        )
        assert [begun.id for begun in _under_way(restarted.data)] == [running]
    for rows in (_used(restarted.http), json.loads(json_text), list(csv.DictReader(io.StringIO(csv_text)))):
        told = [row for row in rows if row["finish_reason"] == "lost"]
        assert {row["id"]: (row["adapter"], int(row["generated_tokens"])) for row in told} == restarted.lost
        assert len(told) == len(restarted.lost)
        assert {(int(row["prompt_tokens"]), int(row["cached_tokens"])) for row in told} == {(3, 0)}
        assert all(row["started"] < row["ended"] for row in told)


def test_g69_a_server_without_files_left_lives_and_serves_again(restarted: Restarted) -> None:
    """Each connection is a file. The limit is set on the running process, and back in the end."""
    assert _complete(restarted.http, "red").status_code == 200, "this one is connected"
    pid, where = restarted.server.process.pid, urlsplit(restarted.server.url)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = len(os.listdir(f"/proc/{pid}/fd"))
    with contextlib.ExitStack() as stack:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + 8, hard))
        stack.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.ExitStack() as crowd:
            for _ in range(100):
                crowd.enter_context(contextlib.closing(socket.create_connection((where.hostname, where.port))))
            time.sleep(0.5)
            assert restarted.server.process.poll() is None
            assert _said(_complete(restarted.http, "red")) == restarted.said["red"], "whoever is connected is answered"
        with restarted.server.client() as late:
            eventually(lambda: _is_alive(late))
            assert _said(_complete(late, "red@prod")) == restarted.said["red@prod"]


def _is_alive(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return http.get("/livez").status_code == 200
    return False


def test_d44_a_flipped_bit_is_found_told_and_repaired(restarted: Restarted) -> None:
    http = restarted.http
    for _ in range(2):
        refused = _complete(http, "blue")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "adapter_corrupt"
        check_error(refused.text)
        assert http.get("/v1/adapters/blue").json()["state"] == "corrupt"
        assert _said(_complete(http, "red")) == restarted.said["red"], "the rest goes on"
    kept = restarted.data / "adapters" / "quarantine"
    assert [path.name for path in kept.iterdir()] == [
        http.get("/v1/adapters/blue").json()["id"].removeprefix("sha256:")
    ]
    assert 'code="adapter_corrupt"} 2.0' in http.get("/metrics").text
    assert "\nrootstock_adapters_quarantined 1.0\n" in http.get("/metrics").text
    assert _upload(http, restarted.blue, "blue").status_code == 200
    assert http.get("/v1/adapters/blue").json()["state"] == "disk"
    assert "\nrootstock_adapters_quarantined 0.0\n" in http.get("/metrics").text
    assert _complete(http, "blue").status_code == 200


@contextlib.contextmanager
def _begun(http: httpx.Client, model: str) -> Iterator[str]:
    """A stream that has begun and runs for seconds: its request id."""
    body = {"model": model, "prompt": [5, 9, 17], "max_tokens": 500, "n": 32, "stream": True, "ignore_eos": True}
    with http.stream("POST", "/v1/completions", json=body) as reply:
        reply.raise_for_status()
        yield reply.headers["x-request-id"]


def _under_way(data: Path) -> list[UsageStart]:
    ledger = Ledger(f"sqlite:///{data / 'usage.sqlite'}")
    try:
        return ledger.under_way()
    finally:
        ledger.close()


def _noted_tokens(data: Path) -> dict[str, int]:
    return {begun.id: begun.generated_tokens for begun in _under_way(data)}


def _used(http: httpx.Client) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = http.get("/v1/usage").raise_for_status().json()["data"]
    return rows


def _flip(blobs: Path, id: str) -> None:
    (weights,) = blobs.glob(f"sha256/??/{id.removeprefix('sha256:')}/adapter_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def _upload(http: httpx.Client, folder: Path, name: str) -> httpx.Response:
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    return http.post("/v1/adapters", data={"name": name}, files=files)


def _complete(http: httpx.Client, model: str) -> httpx.Response:
    body = {"model": model, "prompt": [5, 9, 17], "max_tokens": 6, "temperature": 0, "return_token_ids": True}
    return http.post("/v1/completions", json=body | {"ignore_eos": True})


def _said(reply: httpx.Response) -> list[int]:
    reply.raise_for_status()
    ids: list[int] = reply.json()["choices"][0]["token_ids"]
    return ids


def _noted(data: Path, id: str) -> bool:
    """Whether the registry on disk remembers that the adapter is resident."""
    registry = Registry(f"sqlite:///{data / 'registry.sqlite'}")
    try:
        return AdapterId(id) in registry.residents()
    finally:
        registry.close()
