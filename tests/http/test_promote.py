"""The quality gate: promoting a version measures it on its eval file, and a regression is refused with the numbers.

The fake engine says that a token is likely or not by the adapter alone, so that one version can be worse than another.
"""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

import httpx
import pytest

from adapters.manifest import AdapterId
from engine.errors import QueueFull
from engine.sequence import Output, Request, TokenLogprob
from server.keys.store import KeyStore
from server.meter import Meter
from server.quotas.quota import Quota
from server.quotas.tenant_quotas import Quotas
from server.usage.ledger import Ledger, Usage, UsageFilter
from server.usage.writer import LedgerWriter
from tests.support.engine import FakeStream, FakeWorker
from tests.support.http import LiveServer, eventually, serve
from tests.support.keys import guarded_rig, headers_of
from tests.support.reply_checks import check_after
from tests.support.server_rig import ServerRig, form, make_rig

ROWS = [{"prompt": "a b", "completion": " cd"}, {"messages": [{"role": "user", "content": "x"},
        {"role": "assistant", "content": "yes"}]}]  # fmt: skip
EVAL = "\n".join(map(json.dumps, ROWS)).encode()


class Opinionated(FakeWorker):
    """`logprobs` is what an adapter makes of every token; below -2 its likeliest token is another one."""

    logprobs: dict[AdapterId, float] = {}

    async def submit(self, request: Request) -> FakeStream:
        if request.params.prompt_logprobs is None:
            return await super().submit(request)
        assert len(self.running) < 4, "a promote is nobody's flood"
        stream = await super().submit(request)
        logprob = self.logprobs[request.adapter or AdapterId("")]
        shown = [None, *(self._report(token, logprob) for token in request.prompt[1:])]
        first, *rest = stream._outputs
        stream._outputs = iter([Output(admission=first.admission, prompt_logprobs=tuple(shown)), *rest])
        return stream

    def _report(self, token: int, logprob: float) -> TokenLogprob:
        likeliest = token if logprob > -2 else token + 1
        return TokenLogprob(token, logprob, ((likeliest, max(logprob, -1.0)),))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[tuple[ServerRig, httpx.Client]]:
    """Three versions of `q`: good, the same within the tolerance, and bad; `prod` at the first."""
    worker = Opinionated()
    worker.logprobs = {}
    rig = make_rig(tmp_path, worker)
    with serve(rig.app) as live, live.client() as client:
        for seed, logprob in ((1, -1.0), (2, -1.01), (3, -3.0)):
            files = form(seed) | ({"eval": ("eval.jsonl", EVAL, "x/y")} if seed != 2 else {})
            card = client.post("/v1/adapters", data={"name": "q"}, files=files).json()
            worker.logprobs[card["id"]] = logprob
        client.put("/v1/adapters/q/aliases/prod", json={"version": 1})
        yield rig, client
    rig.registry.close()


Made = tuple[ServerRig, httpx.Client]


def promote(client: httpx.Client, version: int, **more: object) -> httpx.Response:
    return client.post("/v1/adapters/q/promote", json={"version": version, **more})


def measured(rig: ServerRig) -> int:
    return sum(request.params.prompt_logprobs is not None for request in rig.worker.seen)


def test_a_regression_is_refused_with_the_numbers(made: Made) -> None:
    rig, client = made
    refused = promote(client, 3)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (409, "promote_regresses")
    assert refused.headers["x-should-retry"] == "false"
    assert (error["before"]["mean_logprob"], error["after"]["mean_logprob"]) == (-1.0, -3.0)
    assert (error["before"]["exact"], error["after"]["exact"], error["after"]["rows"]) == (1.0, 0.0, 2)
    assert error["after"]["tokens"] == len(" cd") + len("yes")
    assert "-3.000" in error["message"] and "-1.000" in error["message"] and "0.02" in error["message"]
    assert client.get("/v1/adapters/q@prod").json()["version"] == 1
    assert not rig.worker.running


def test_it_can_be_forced_or_tolerated(made: Made) -> None:
    _, client = made
    assert promote(client, 3, tolerance=5).json()["aliases"] == ["prod"]
    assert client.post("/v1/adapters/q/rollback", json={}).json()["version"] == 1
    assert promote(client, 3, force=True).json()["gate"] == "forced"
    assert client.get("/v1/adapters/q@prod").json()["version"] == 3


def test_without_a_file_of_its_own_it_is_measured_on_the_other_ones(made: Made) -> None:
    rig, client = made
    reply = promote(client, 2).json()
    assert (reply["version"], reply["score"]["mean_logprob"], reply["before"]["mean_logprob"]) == (2, -1.01, -1.0)
    assert promote(client, 1, tolerance=0).status_code == 200, "better is never refused"


def test_scores_are_remembered(made: Made) -> None:
    rig, client = made
    promote(client, 3)
    first = measured(rig)
    promote(client, 3)
    assert measured(rig) == first == 4
    shown = {card["version"]: card["score"] for card in client.get("/v1/adapters/q/versions").json()["data"]}
    assert shown[2] is None and shown[1]["mean_logprob"] == -1.0 and shown[3]["mean_logprob"] == -3.0
    other = json.dumps({"prompt": "other", "completion": "rows"}).encode()
    assert client.put("/v1/adapters/q@3/eval", content=other).json()["rows"] == 1
    assert client.get("/v1/adapters/q@3/eval").content == other
    promote(client, 3)
    assert measured(rig) == 6, "another file asks both versions again"


def test_an_alias_that_points_nowhere_has_nothing_to_lose(made: Made) -> None:
    rig, client = made
    reply = promote(client, 3, alias="first").json()
    assert (reply["gate"], reply["score"]["mean_logprob"], reply["before"]) == ("measured", -3.0, None)


def test_without_eval_files_nothing_is_measured(made: Made) -> None:
    rig, client = made
    assert client.get("/v1/adapters/q@2/eval").status_code == 404
    reply = promote(client, 2, alias="free").json()
    assert (reply["gate"], reply["score"]) == ("no_eval_file", None)
    assert measured(rig) == 0


def test_an_alias_moved_meanwhile_is_412(made: Made) -> None:
    rig, client = made

    class Moving(Opinionated):
        async def submit(self, request: Request) -> FakeStream:
            rig.catalog.set_alias("q", "prod", 3)
            return await super().submit(request)

    rig.worker.__class__ = Moving
    assert promote(client, 2).json()["error"]["code"] == "precondition_failed"


def test_a_full_queue_is_told_and_leaves_the_alias(made: Made) -> None:
    rig, client = made

    class Full(Opinionated):
        async def submit(self, request: Request) -> FakeStream:
            raise QueueFull(1)

    rig.worker.__class__ = Full
    assert promote(client, 3).status_code == 429
    assert client.get("/v1/adapters/q@prod").json()["version"] == 1
    assert rig.catalog.leases.idle


class Taken:
    """A lock that nobody gets before it is `free`; `wanted` is set once somebody waits for it."""

    def __init__(self) -> None:
        self._lock, self.wanted, self.free = Lock(), Event(), Event()

    def __enter__(self) -> None:
        self.wanted.set()
        assert self.free.wait(20)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


def test_f61_a_hangup_while_a_promote_takes_hold_of_a_version_leaves_no_hold(made: Made) -> None:
    rig, client = made
    rig.catalog.leases._lock = lock = Taken()  # type: ignore[assignment]
    body = b'{"version": 3}'
    head = f"POST /v1/adapters/q/promote HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}"
    with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
        leaving.sendall(f"{head}\r\ncontent-type: application/json\r\n\r\n".encode() + body)
        assert lock.wanted.wait(10)
    for _ in range(3):
        assert client.get("/livez").status_code == 200, "the loop has heard that the other one is gone"
    lock.free.set()
    check_after(client, rig)
    assert client.delete("/v1/adapters/q").status_code == 200, "nobody uses it"


BAD = {
    "nothing": b"",
    "no JSON": b"{",
    "an array": b"[]",
    "a text row": b'{"text": "x"}',
    "an unknown key": b'{"prompt": "x", "completion": "y", "zq-9f1": 1}',
    "an empty completion": b'{"prompt": "x", "completion": ""}',
    "no answer": b'{"messages": [{"role": "user", "content": "x"}]}',
    "too long": json.dumps({"prompt": "x" * 5000, "completion": "y"}).encode(),
    "too many": b'{"prompt": "x", "completion": "y"}\n' * 300,
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("case", BAD)
def test_eval_files_that_are_refused(case: str, http: httpx.Client) -> None:
    files = form(300) | {"eval": ("eval.jsonl", BAD[case], "x/y")}
    reply = http.post("/v1/adapters", data={"name": "never"}, files=files)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_eval"), reply.text
    assert len(reply.content) < 2000 and "eval.jsonl" in reply.text
    assert http.get("/v1/adapters/never").status_code == 404


def test_an_eval_file_is_bounded(http: httpx.Client) -> None:
    http.post("/v1/adapters", data={"name": "bounded"}, files=form(301))
    large = b'{"prompt": "x", "completion": "y"}\n' * 10_000
    assert http.put("/v1/adapters/bounded/eval", content=large).status_code == 413
    files = form(302) | {"eval": ("eval.jsonl", large, "x/y")}
    assert http.post("/v1/adapters", data={"name": "bounded"}, files=files).status_code == 413
    assert http.put("/v1/adapters/nobody/eval", content=EVAL).status_code == 404
    assert len(http.get("/v1/adapters/bounded/versions").json()["data"]) == 1


@dataclass
class Metered:
    """`made` with keys, a ledger and quotas: `free` has none, `small` and `once` have too little for a promote."""

    rig: ServerRig
    live: LiveServer
    store: KeyStore
    ledger: Ledger

    @contextmanager
    def furnished(self, tenant: str) -> Iterator[httpx.Client]:
        """A client of a tenant that has two versions of `q`, `prod` at the first."""
        worker = self.rig.worker
        assert isinstance(worker, Opinionated)
        with self.live.client(**headers_of(self.store, tenant)) as client:
            for seed, logprob in ((1, -1.0), (2, -1.01)):
                files = form(seed) | {"eval": ("eval.jsonl", EVAL, "x/y")}
                card = client.post("/v1/adapters", data={"name": "q"}, files=files).json()
                worker.logprobs[card["id"]] = logprob
            client.put("/v1/adapters/q/aliases/prod", json={"version": 1})
            yield client

    def rows(self, tenant: str, count: int) -> list[Usage]:
        """Once there are `count`."""
        wanted = UsageFilter(tenant=tenant)
        eventually(lambda: len(self.ledger.page(wanted)) >= count)
        return list(self.ledger.rows(wanted))


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metered]:
    folder, worker = tmp_path_factory.mktemp("metered"), Opinionated()
    worker.logprobs = {}
    quotas = Quotas(None, {"small": Quota(tokens_per_minute=TOKENS - 1), "once": Quota(requests_per_minute=1)})
    ledger = Ledger(f"sqlite:///{folder / 'usage.sqlite'}")
    writer = LedgerWriter(ledger)
    with guarded_rig(folder, Meter(quotas, writer), worker) as (rig, store), serve(rig.app) as live:
        yield Metered(rig, live, store, ledger)
        with live.client(**headers_of(store, "after")) as client:
            check_after(client, rig)
    writer.close()
    ledger.close()


TOKENS = len("a b cd") + len("<user\nx><assistant\nyes")
"""Of the rows, as the engine is given them: bytes, and a token where a turn begins and ends."""


def test_i86_what_is_measured_is_in_the_ledger_under_its_caller(metered: Metered) -> None:
    with metered.furnished("free") as client:
        reply = promote(client, 2)
        assert reply.status_code == 200
        rows = metered.rows("free", 2)
        assert promote(client, 1).status_code == 200
        assert len(metered.rows("free", 2)) == 2, "what is remembered costs nothing"
    asked = [request for request in metered.rig.worker.seen if request.params.prompt_logprobs is not None]
    assert {request.tenant for request in asked} == {"free"}, "whose turn it is, is counted too"
    tokens_of: Counter[str] = Counter()
    for request in asked:
        tokens_of[request.id.rpartition("-")[0]] += len(request.prompt)
    assert {row.id: row.prompt_tokens for row in rows} == dict(tokens_of) and sum(tokens_of.values()) == 2 * TOKENS
    assert {row.id for row in rows} == {f"{reply.headers['x-request-id']}-eval-{number}" for number in (1, 2)}
    assert {(row.adapter, row.generated_tokens, row.cached_tokens, row.finish_reason) for row in rows} == {
        ("q@1", 0, 0, "length"), ("q@2", 0, 0, "length"),
    }  # fmt: skip


def test_i85_a_promote_is_held_to_its_callers_quotas(metered: Metered) -> None:
    worker = metered.rig.worker
    for tenant, measured_rows in (("small", 0), ("once", 2)):
        with metered.furnished(tenant) as client:
            before = measured(metered.rig)
            refused = promote(client, 2)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded"), refused.text
            assert measured(metered.rig) - before == measured_rows, "a version at a time is a request"
            assert client.get("/v1/adapters/q@prod").json()["version"] == 1
            assert promote(client, 2, force=True).status_code == 200, "which measures nothing"
    assert not worker.running and metered.rig.catalog.leases.idle


def test_i86_a_promote_that_ends_early_pays_for_what_was_begun(metered: Metered) -> None:
    """A full queue refuses the second four of eight rows."""
    worker = metered.rig.worker
    with metered.furnished("early") as client:
        client.put("/v1/adapters/q@2/eval", content=b"\n".join([ROW] * 8))
        worker.seen.clear()

        class Filling(Opinionated):
            async def submit(self, request: Request) -> FakeStream:
                if len(self.seen) >= 4:
                    raise QueueFull(4)
                return await super().submit(request)

        worker.__class__ = Filling
        assert promote(client, 2).status_code == 429
        worker.__class__ = Opinionated
        (row,) = metered.rows("early", 1)
        assert (row.prompt_tokens, row.finish_reason) == (4 * len("a b cd"), "abort")


ROW = json.dumps(ROWS[0]).encode()
