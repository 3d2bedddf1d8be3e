"""Versions in practice over HTTP: aliases that move and go back, and canaries."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from adapters.manifest import AdapterId
from engine.events import Admitted, Finished, Observer, ignore
from engine.sequence import FinishReason, Request
from server.app import create_app
from server.metrics import MAX_ADAPTER_LABELS, Metrics
from tests.support.engine import FakeStream, FakeWorker
from tests.support.http import serve
from tests.support.server_rig import BASE, form, make_rig


@dataclass
class Counted(FakeWorker):
    """Says of each request that it was admitted and has ended, as the engine does."""

    observe: Observer = ignore

    async def submit(self, request: Request) -> FakeStream:
        stream = await super().submit(request)
        self.observe(Admitted(request.id, request.adapter, "device", 0.0, 0.0, len(request.prompt), 0))
        self.observe(Finished(request.id, request.adapter, FinishReason.LENGTH, 1, 0.0))
        return stream


@pytest.fixture(scope="module")
def ids(http: httpx.Client) -> Mapping[int, str]:
    return uploaded(http)


def uploaded(http: httpx.Client) -> Mapping[int, str]:
    """The contents of three versions of `v`, with `prod` at the first; by number."""
    cards = [http.post("/v1/adapters", data={"name": "v"}, files=form(seed)).json() for seed in (201, 202, 203)]
    return {card["version"]: card["id"] for card in cards}


@pytest.fixture(autouse=True)
def _at_one(http: httpx.Client, ids: Mapping[int, str]) -> None:
    http.put("/v1/adapters/v/aliases/prod", json={"version": 1}).raise_for_status()


def answering(http: httpx.Client, model: str = "v@prod", /, **more: object) -> str:
    reply = http.post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 1, **more})
    assert reply.status_code == 200, reply.text
    return reply.headers["x-rootstock-adapter"]


def canary(http: httpx.Client, weight: float = 0.5) -> None:
    body = {"version": 1, "canary": {"version": 3, "weight": weight}}
    http.put("/v1/adapters/v/aliases/prod", json=body).raise_for_status()


def test_a_rollback_puts_the_alias_back(http: httpx.Client, ids: Mapping[int, str]) -> None:
    http.put("/v1/adapters/v/aliases/prod", json={"version": 2})
    assert answering(http) == ids[2]
    back = http.post("/v1/adapters/v/rollback", json={})
    assert (back.status_code, back.json()["version"], back.json()["aliases"]) == (200, 1, ["prod"])
    assert answering(http) == ids[1]
    stale = http.post("/v1/adapters/v/rollback", json={}, headers={"if-match": '"2"'})
    assert stale.status_code == 412
    shown = http.get("/v1/adapters/v/aliases/prod")
    assert shown.headers["etag"] == back.headers["etag"] == '"1"'
    told = shown.json()
    assert (told["version"], told["canary"]) == (1, None)
    latest = told["history"][0]
    assert (latest["from"], latest["to"]) == (1, 2) and latest["undone"] > 0 < latest["moved"]


def test_there_may_be_nothing_to_go_back_to(http: httpx.Client) -> None:
    http.put("/v1/adapters/v/aliases/new", json={"version": 1})
    refused = http.post("/v1/adapters/v/rollback", json={"alias": "new"})
    http.delete("/v1/adapters/v/aliases/new")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "nothing_to_roll_back")
    assert refused.headers["x-should-retry"] == "false"
    absent = http.post("/v1/adapters/nobody/rollback", json={})
    assert (absent.status_code, absent.json()["error"]["code"]) == (404, "adapter_not_found")
    assert http.get("/v1/adapters/v/aliases/none").status_code == 404


@pytest.mark.parametrize("field", ["user", "safety_identifier", "seed"])
def test_a_canary_is_sticky(field: str, http: httpx.Client, ids: Mapping[int, str]) -> None:
    canary(http)
    keys: list[object] = [number if field == "seed" else f"u-{number}" for number in range(40)]
    first = [answering(http, **{field: key}) for key in keys]
    assert set(first) == {ids[1], ids[3]}
    assert [answering(http, **{field: key}) for key in keys] == first


def test_a_user_keeps_to_a_version_whatever_the_seed(http: httpx.Client, ids: Mapping[int, str]) -> None:
    canary(http)
    assert len({answering(http, user="u", seed=seed) for seed in range(20)}) == 1
    assert len({answering(http, user=f"{n}", seed=7) for n in range(20)}) == 2


def test_without_a_key_requests_are_split_one_by_one(http: httpx.Client, ids: Mapping[int, str]) -> None:
    canary(http)
    assert {answering(http) for _ in range(40)} == {ids[1], ids[3]}
    assert {answering(http, f"v@{number}") for number in (1, 1, 1) for _ in range(10)} == {ids[1]}


def test_chat_is_split_as_completions_are(http: httpx.Client, ids: Mapping[int, str]) -> None:
    canary(http)
    for user in map(str, range(10)):
        body = {"model": "v@prod", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "user": user}
        reply = http.post("/v1/chat/completions", json=body)
        assert reply.headers["x-rootstock-adapter"] == answering(http, user=user)


def test_a_canary_is_shown_and_ended(http: httpx.Client, ids: Mapping[int, str]) -> None:
    canary(http, 0.25)
    shown = {card["version"]: (card["aliases"], card["canary"]) for card in versions(http)}
    assert shown == {1: (["prod"], {}), 2: ([], {}), 3: ([], {"prod": 0.25})}
    assert http.get("/v1/adapters/v/aliases/prod").json()["canary"] == {"version": 3, "weight": 0.25}
    assert http.get("/v1/adapters/v@prod").json()["version"] == 1
    http.post("/v1/adapters/v/rollback", json={})
    assert http.get("/v1/adapters/v/aliases/prod").json()["canary"] is None
    assert {answering(http) for _ in range(20)} == {ids[1]}


def versions(http: httpx.Client) -> list[dict[str, object]]:
    found: list[dict[str, object]] = http.get("/v1/adapters/v/versions").json()["data"]
    return found


def test_metrics_tell_the_two_versions_apart(http: httpx.Client, ids: Mapping[int, str]) -> None:
    canary(http, 0.25)
    stable, tried = (ids[number].removeprefix("sha256:")[:12] for number in (1, 3))
    assert f'rootstock_canary_weight{{canary="{tried}",stable="{stable}"}} 0.25' in http.get("/metrics").text
    http.put("/v1/adapters/v/aliases/prod", json={"version": 1})
    assert not re.search(r"^rootstock_canary_weight\{", http.get("/metrics").text, re.MULTILINE)


def test_requests_of_both_versions_are_counted_apart(tmp_path: Path) -> None:
    """Also where other adapters have taken every label before: a canary that is `other` cannot be compared."""
    worker = Counted()
    rig = make_rig(tmp_path, worker)
    metrics = rig.services.metrics
    worker.observe = metrics.observe
    for number in range(MAX_ADAPTER_LABELS):
        metrics.labels.label_for(AdapterId(f"sha256:{number:012x}{0:052x}"))
    with serve(rig.app) as live, live.client() as http:
        ids = uploaded(http)
        canary(http)
        answered = Counter(answering(http, user=str(number)) for number in range(40))
        told = http.get("/metrics").text
    again = Metrics()
    for number in range(MAX_ADAPTER_LABELS):
        again.labels.label_for(AdapterId(f"sha256:{number:012x}{0:052x}"))
    create_app(replace(rig.services, metrics=again))
    rig.registry.close()
    assert set(answered) == {ids[1], ids[3]}
    for id, count in answered.items():
        label = id.removeprefix("sha256:")[:12]
        assert f'rootstock_requests_total{{adapter="{label}",reason="length"}} {count}.0' in told
        assert f'rootstock_generated_tokens_total{{adapter="{label}"}} {count}.0' in told
        assert again.labels.label_for(AdapterId(id)) == label, "and so from the next start on"


@pytest.mark.parametrize(
    "tried",
    [{"version": 3, "weight": weight} for weight in (0, 1, -0.1, "0.5", True)]
    + [{"version": 3}, {"weight": 0.5}, {"version": 1, "weight": 0.5}, {"version": 3, "weight": 0.5, "x": 1}, 3],
)
def test_canaries_that_are_refused(tried: object, http: httpx.Client) -> None:
    reply = http.put("/v1/adapters/v/aliases/prod", json={"version": 1, "canary": tried})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"].startswith("canary")


def test_a_canary_of_an_unknown_version_is_404(http: httpx.Client) -> None:
    reply = http.put("/v1/adapters/v/aliases/prod", json={"version": 1, "canary": {"version": 9, "weight": 0.5}})
    assert reply.status_code == 404
    assert answering(http, BASE) == "base"
