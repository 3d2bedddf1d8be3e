"""Names and lifecycles that go wrong elsewhere: cases D37 to D42. After each, what reply_checks.py asks holds."""

import json
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from server.routes.uploads import RESERVED
from tests.support.engine import FakeWorker
from tests.support.http import LiveServer, eventually, serve
from tests.support.reply_checks import check_after, check_reply, refused
from tests.support.server_rig import BASE, ServerRig, form, make_rig, write_adapter


def push(http: httpx.Client, name: str, seed: int = 0, **fields: str) -> httpx.Response:
    return http.post("/v1/adapters", data={"name": name, **fields}, files=form(seed))


def named(http: httpx.Client, rig: ServerRig, name: str) -> Iterator[tuple[str, httpx.Response]]:
    """Every route that makes a name is asked for this one; what it calls it, and its answer."""
    yield "name", push(http, name)
    yield "name", http.post("/v1/adapters/uploads", json={"name": name, "config": "{}", "size": 1})
    if name:
        write_adapter(rig.services.adapter_root / "there")  # type: ignore[operator]
        yield "lora_name", http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": "there"})
    if in_a_path(name):
        yield "name", http.post(f"/v1/adapters/{quote(name)}/versions", json={"source": "x"})


def aliased(http: httpx.Client, alias: str) -> Iterator[httpx.Response]:
    """Every route that makes an alias."""
    yield push(http, "fine", alias=alias)
    yield http.post("/v1/adapters/uploads", json={"name": "fine", "alias": alias, "config": "{}", "size": 1})
    if in_a_path(alias):
        yield http.put(f"/v1/adapters/fine/aliases/{quote(alias)}", json={"version": 1})


def in_a_path(name: str) -> bool:
    """Whether it reaches the route: a slash and dots alone lead to another."""
    return "/" not in name and name not in ("", ".", "..")


PATHS = ["../x", "a/b", ".", "..", "", "%2e%2e", "a%00b", "x" * 300, "a\x01b", "a b", "-x", "a\\b", "C:x"]
TWINS = ["p\u0430y", "n\u00e9", unicodedata.normalize("NFD", "n\u00e9"), "\u202eabc", "a\u200bb", "\uff41"]


@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_d37_names_that_are_paths(name: str, http: httpx.Client, rig: ServerRig) -> None:
    for param, reply in named(http, rig, name):
        refused(reply, http, rig, code="name_invalid", param=param)
    for reply in aliased(http, name or "7"):
        refused(reply, http, rig, code="alias_invalid", param="alias")
    assert "fine" not in [card["name"] for card in http.get("/v1/adapters").json()["data"]]


@pytest.mark.parametrize("name", ["con", "NUL.txt", "Com1", "lpt9.tar.gz"])
def test_d37_names_of_devices(name: str, http: httpx.Client, rig: ServerRig) -> None:
    for param, reply in named(http, rig, name):
        refused(reply, http, rig, code="name_invalid", param=param)


@pytest.mark.parametrize("name", TWINS, ids=ascii)
def test_d38_names_that_look_like_others(name: str, http: httpx.Client, rig: ServerRig) -> None:
    for param, reply in named(http, rig, name):
        refused(reply, http, rig, code="name_invalid", param=param)
    for reply in aliased(http, name):
        refused(reply, http, rig, code="alias_invalid", param="alias")
    reply = http.post("/v1/completions", json={"model": name, "prompt": "x"})
    refused(reply, http, rig, status=404, code="model_not_found", param="model")


@pytest.mark.parametrize("name", [BASE, BASE.upper(), *sorted(RESERVED)])
def test_d39_names_that_mean_something_else(name: str, http: httpx.Client, rig: ServerRig) -> None:
    for param, reply in named(http, rig, name):
        refused(reply, http, rig, status=409, code="name_reserved", param=param)
        assert reply.headers["x-should-retry"] == "false"


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[ServerRig, LiveServer]]:
    """A server whose tokens take 10 ms each."""
    rig = make_rig(tmp_path, FakeWorker(delay_s=0.01))
    with serve(rig.app) as live:
        yield rig, live
    rig.registry.close()


def text_of(reply: httpx.Response) -> str:
    """The rest of a stream, which must end as streams end."""
    events = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    return "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])


def test_d40_streams_outlive_the_name_they_run_on(slow: tuple[ServerRig, LiveServer]) -> None:
    rig, live = slow
    body = {"model": "gone", "prompt": "x", "max_tokens": 80, "stream": True, "seed": 1}
    with live.client() as http, ThreadPoolExecutor(20) as pool:
        id = push(http, "gone").json()["id"]
        whole = http.post("/v1/completions", json=body | {"stream": False}).json()["choices"][0]["text"]

        def stream() -> str:
            with live.client() as own, own.stream("POST", "/v1/completions", json=body) as reply:
                assert reply.headers["x-rootstock-adapter"] == id
                return text_of(reply)

        streams = [pool.submit(stream) for _ in range(20)]
        eventually(lambda: len(rig.worker.running) == 20)
        deleted = http.delete("/v1/adapters/gone")
        assert (deleted.status_code, deleted.json()["deleted"]) == (202, True), "they run, and the name is gone"
        assert http.post("/v1/completions", json=body).status_code == 404
        assert list(rig.catalog._store.ids()) == [id], "the streams still hold the bytes"
        assert {each.result() for each in streams} == {whole}
        eventually(lambda: not list(rig.catalog._store.ids()))
        check_after(http, rig)


def test_d40_an_adapter_that_nothing_runs_on_is_deleted_at_once(slow: tuple[ServerRig, LiveServer]) -> None:
    """Also when the same bytes are in use under another name, which is nobody's business here."""
    rig, live = slow
    with live.client() as http, live.client() as other:
        push(http, "still")
        push(http, "twin")
        http.post("/v1/completions", json={"model": "still", "prompt": "x", "max_tokens": 1})
        body = {"model": "twin", "prompt": "x", "max_tokens": 60, "stream": True}
        with other.stream("POST", "/v1/completions", json=body) as reply:
            eventually(lambda: bool(rig.worker.running))
            assert http.delete("/v1/models/still").status_code == 200
            assert http.delete("/v1/models/twin").status_code == 202
            text_of(reply)
        assert not rig.catalog.leases._leased
        eventually(lambda: not list(rig.catalog._store.ids()))
        check_after(http, rig)


def test_d41_a_stream_keeps_its_version_when_the_alias_moves(slow: tuple[ServerRig, LiveServer]) -> None:
    rig, live = slow
    body = {"model": "m@prod", "prompt": "x", "max_tokens": 40, "seed": 1}
    with live.client() as http, live.client() as other:
        old, new = push(http, "m", 1, alias="prod").json()["id"], push(http, "m", 2).json()["id"]
        whole = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as reply:
            eventually(lambda: bool(rig.worker.running))
            assert other.post("/v1/adapters/m/promote", json={"version": 2}).status_code == 200
            after = other.post("/v1/completions", json=body)
            assert after.headers["x-rootstock-adapter"] == new
            assert after.json()["choices"][0]["text"] != whole
            assert reply.headers["x-rootstock-adapter"] == old
            assert text_of(reply) == whole
        check_after(http, rig)


USES = 1000


def test_d42_a_use_that_races_a_delete_is_answered_or_404(live: LiveServer, rig: ServerRig) -> None:
    over = threading.Event()
    body = {"model": "raced", "prompt": "x", "max_tokens": 1}

    def use() -> Counter[int]:
        with live.client() as http:
            replies = [http.post("/v1/completions", json=body) for _ in range(USES // 4)]
        for reply in replies:
            check_reply(reply)
        return Counter(reply.status_code for reply in replies)

    def churn() -> None:
        with live.client() as http:
            while not over.is_set():
                assert push(http, "raced", 400).status_code == 201
                assert http.delete("/v1/adapters/raced").status_code in (200, 202)

    with ThreadPoolExecutor(5) as pool:
        churning = pool.submit(churn)
        counts = sum((users.result() for users in [pool.submit(use) for _ in range(4)]), Counter[int]())
        over.set()
        churning.result()
    assert set(counts) <= {200, 404} and sum(counts.values()) == USES
    assert counts[200] and counts[404], "both happened, so there was a race"
    with live.client() as http:
        check_after(http, rig)
    assert set(rig.catalog._store.ids()) == rig.registry.ids()
