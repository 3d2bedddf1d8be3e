"""The ledger against the truth: what the engine handed over, request by request, however each of them ended."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.keys.store import KeyStore
from server.meter import Meter
from server.principal import Scope
from server.usage.ledger import Ledger, Usage, UsageFilter
from server.usage.writer import LedgerWriter
from tests.support.engine import FakeWorker
from tests.support.http import LiveServer, eventually, serve
from tests.support.keys import guarded_rig, headers_of
from tests.support.reply_checks import check_after
from tests.support.server_rig import BASE, ServerRig, form

COMPLETION = {"model": BASE, "prompt": "Once", "max_tokens": 12, "ignore_eos": True}


@dataclass
class MeteredServer:
    """A server with a ledger, and what a test looks at."""

    rig: ServerRig
    live: LiveServer
    keys: KeyStore
    ledger: Ledger

    def client(self, tenant: str, *scopes: Scope) -> httpx.Client:
        return self.live.client(**headers_of(self.keys, tenant, *scopes))

    def rows(self, count: int) -> list[Usage]:
        """Once there are `count`."""
        eventually(lambda: len(self.ledger.page(UsageFilter())) >= count)
        return list(self.ledger.rows(UsageFilter()))


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[MeteredServer]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'usage.sqlite'}")
    writer = LedgerWriter(ledger)
    worker = FakeWorker(room=50, max_model_len=100_000)
    with guarded_rig(tmp_path, Meter(writer=writer), worker) as (rig, keys), serve(rig.app) as live:
        yield MeteredServer(rig, live, keys, ledger)
        worker.room, worker.fail_after = 50, None
        with live.client(**headers_of(keys, "after")) as client:
            check_after(client, rig)
    writer.close()
    ledger.close()


def test_i86_rows_equal_true_tokens_after_ends_aborts_errors_and_refusals(metered: MeteredServer) -> None:
    worker = metered.rig.worker
    with metered.client("acme") as http:
        whole = http.post("/v1/completions", json=COMPLETION | {"n": 2, "seed": 1})
        streamed = http.post("/v1/completions", json=COMPLETION | {"stream": True})
        worker.fail_after = 3
        failed = http.post("/v1/completions", json=COMPLETION)
        worker.fail_after, worker.room = None, 0
        assert http.post("/v1/completions", json=COMPLETION).status_code == 429
        worker.room, worker.delay_s = 50, 0.02
        with http.stream("POST", "/v1/completions", json=COMPLETION | {"max_tokens": 5000, "stream": True}) as hung_up:
            next(hung_up.iter_lines())
        rows = {row.id: row for row in metered.rows(4)}
    replies = [whole, streamed, failed, hung_up]
    assert set(rows) == {reply.headers["x-request-id"] for reply in replies}, "one each, and none for a refusal"
    assert [rows[reply.headers["x-request-id"]].finish_reason for reply in replies] == [
        "length", "length", "error", "abort",
    ]  # fmt: skip
    assert {id: row.generated_tokens for id, row in rows.items()} == handed(worker)
    assert {(row.prompt_tokens, row.cached_tokens) for row in rows.values()} == {(4, 2)}, "once, however many answers"
    assert all(row.started <= row.ended for row in rows.values())
    assert whole.json()["usage"]["completion_tokens"] == rows[whole.headers["x-request-id"]].generated_tokens


def test_i86_what_is_under_way_is_on_disk_while_it_runs_and_not_when_it_has_ended(metered: MeteredServer) -> None:
    worker = metered.rig.worker
    worker.delay_s = 0.02
    with metered.client("acme") as http:
        with http.stream("POST", "/v1/completions", json=COMPLETION | {"max_tokens": 5000, "stream": True}) as running:
            eventually(lambda: metered.ledger.under_way())
            (begun,) = metered.ledger.under_way()
            assert list(metered.ledger.rows(UsageFilter())) == []
        assert (begun.id, begun.tenant, begun.prompt_tokens) == (running.headers["x-request-id"], "acme", 4)
        worker.room = 0
        assert http.post("/v1/completions", json=COMPLETION).status_code == 429
    (row,) = metered.rows(1)
    assert row == begun.ended(row.cached_tokens, row.generated_tokens, "abort", row.ended)
    assert metered.ledger.under_way() == [], "what was refused never was under way"


def test_i86_what_it_got_is_noted_every_second(metered: MeteredServer) -> None:
    worker, seen = metered.rig.worker, [0]
    worker.delay_s = 0.02
    long = COMPLETION | {"max_tokens": 5000, "stream": True}

    def noted() -> int:
        return sum(begun.generated_tokens for begun in metered.ledger.under_way())

    with metered.client("acme") as http, http.stream("POST", "/v1/completions", json=long) as running:
        for _ in range(2):
            eventually(lambda: noted() > seen[-1])
            seen.append(noted())
            assert seen[-1] <= handed(worker)[running.headers["x-request-id"]]
    (row,) = metered.rows(1)
    assert row.generated_tokens >= seen[2] > seen[1] + 10, "a note is no end, and not every token is noted"
    assert metered.ledger.under_way() == []


def handed(worker: FakeWorker) -> dict[str, int]:
    """What each HTTP request was given: a request of the engine is called after it, and numbered."""
    tokens_of: Counter[str] = Counter()
    for id, tokens in worker.handed.items():
        tokens_of[id.rpartition("-")[0]] += tokens
    return dict(tokens_of)


def test_i86_a_retry_is_a_request_of_its_own_and_a_clients_id_is_no_key(metered: MeteredServer) -> None:
    with metered.client("acme") as http:
        for _ in range(3):
            http.post("/v1/completions", json=COMPLETION, headers={"x-request-id": "mine"})
    rows = metered.rows(3)
    assert len({row.id for row in rows}) == 3 and "mine" not in {row.id for row in rows}


def test_g74_a_row_says_how_long_it_took_whatever_the_wall_clock_did(metered: MeteredServer) -> None:
    """It is run under tests/support/jumping_clock.py too."""
    with metered.client("acme") as http:
        for _ in range(6):
            http.post("/v1/completions", json=COMPLETION).raise_for_status()
    assert all(0 < row.ended - row.started < 60 for row in metered.rows(6))


def test_h78_rows_say_whose_and_on_what(metered: MeteredServer) -> None:
    """Whatever else the request says of that."""
    said = {"x-tenant": "beta", "openai-organization": "beta", "openai-project": "beta"}
    with metered.client("acme") as http:
        http.post("/v1/adapters", data={"name": "sql"}, files=form()).raise_for_status()
        http.post(
            "/v1/completions", json=COMPLETION | {"model": "sql", "user": "beta"}, headers=said
        ).raise_for_status()
    (row,) = metered.rows(1)
    assert (row.tenant, row.project, row.adapter) == ("acme", "default", "sql@1")
    assert row.key == metered.keys.every()[0].id


def test_h76_a_key_sees_its_own_tenants_rows_an_admins_too(metered: MeteredServer) -> None:
    def seen(http: httpx.Client, **query: Any) -> list[str]:
        reply = http.get("/v1/usage", params=query)
        reply.raise_for_status()
        return [row["tenant"] for row in reply.json()["data"]]

    for tenant in ("a", "b", "a"):
        with metered.client(tenant) as http:
            http.post("/v1/completions", json=COMPLETION).raise_for_status()
    metered.rows(3)
    with metered.client("a", Scope.READ) as http:
        assert seen(http) == seen(http, tenant="a") == ["a", "a"]
        assert http.get("/v1/usage", params={"tenant": "b"}).status_code == 403
        assert http.get("/v1/usage", params={"since": "yesterday"}).status_code == 400
        assert seen(http, until="2020-01-01") == [] and seen(http, since="2020-01-01T00:00:00Z") == ["a", "a"]
        page = http.get("/v1/usage", params={"limit": 1}).json()
        assert seen(http, after=page["next"], limit=1) == ["a"]
    with metered.client("b") as http:
        assert seen(http) == seen(http, tenant="b") == ["b"]
        refused = http.get("/v1/usage", params={"tenant": "a"})
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "not_owner"
        absent = http.get("/v1/usage", params={"tenant": "nobody"})
        assert absent.json() == refused.json(), "who is a tenant is told to nobody"
    with metered.client("a", Scope.INFER) as http:
        assert http.get("/v1/usage").status_code == 403
