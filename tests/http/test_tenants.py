"""Tenants over HTTP: what one has does not exist for another, on any route, until it is shared."""

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from fastapi.routing import iter_route_contexts

from adapters.manifest import AdapterId
from adapters.sharing import EVERYBODY
from engine.events import Admitted
from server.deps import RequireScope
from server.keys.store import KeyStore
from server.metrics import MAX_ADAPTER_LABELS
from server.principal import Scope
from tests.support.http import LiveServer, eventually, serve
from tests.support.keys import bearer, guarded_rig, headers_of
from tests.support.reply_checks import check_after, check_reply
from tests.support.server_rig import BASE, ServerRig, form, write_adapter

HIDDEN, ABSENT = "zz-hidden", "zz-absent"
SECRET_PROMPT = "the launch code is 0000"


class Tenants:
    """A server with keys, and a client for each tenant that is named."""

    def __init__(self, rig: ServerRig, store: KeyStore, live: LiveServer) -> None:
        self.rig, self.store, self.live = rig, store, live

    def client(self, tenant: str, *scopes: Scope) -> httpx.Client:
        return self.live.client(**headers_of(self.store, tenant, *scopes))


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    with guarded_rig(tmp_path_factory.mktemp("tenants")) as (rig, store), serve(rig.app) as live:
        yield Tenants(rig, store, live)


@pytest.fixture(autouse=True)
def _as_before(tenants: Tenants) -> Iterator[None]:
    """After each test a third tenant is served, and nothing is left that a row does not name."""
    yield
    with tenants.client("after") as client:
        check_after(client, tenants.rig)


@pytest.fixture(scope="module")
def a(tenants: Tenants) -> Iterator[httpx.Client]:
    with tenants.client("acme") as client:
        yield client


@pytest.fixture(scope="module")
def b(tenants: Tenants) -> Iterator[httpx.Client]:
    with tenants.client("beta") as client:
        yield client


def push(http: httpx.Client, name: str, seed: int = 0, **fields: str) -> httpx.Response:
    return http.post("/v1/adapters", data={"name": name, **fields}, files=form(seed))


def answering(http: httpx.Client, model: str) -> str:
    reply = http.post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 1})
    assert reply.status_code == 200, reply.text
    return reply.headers["x-rootstock-adapter"]


def visible(reply: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """All that a client sees, but for what is another one each time."""
    return reply.status_code, reply.content, dict(reply.headers) | {"x-request-id": "", "date": ""}


def everything(http: httpx.Client, name: str) -> list[httpx.Response]:
    """Every way to ask for, or to change, an adapter that is named."""
    quoted = name.replace("/", "%2F")
    body = {"model": name, "prompt": "x", "max_tokens": 1}
    chat = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    replies = [
        http.post("/v1/completions", json=body),
        http.post("/v1/completions", json=body | {"stream": True}),
        http.post("/v1/completions", json=body | {"model": f"{BASE}:{name}"}),
        http.post("/v1/completions", json=body | {"model": BASE, "adapter_id": name}),
        http.post("/v1/chat/completions", json=chat),
        http.post("/v1/unload_lora_adapter", json={"lora_name": name}),
    ]
    for method in ("GET", "DELETE"):
        replies += [http.request(method, f"/v1/models/{path}") for path in (name, f"{name}@1", f"{name}@prod")]
    for path in (name, quoted):
        for suffix in ("", "@1", "@prod", "/versions", "/shares", "/aliases/prod", "/eval"):
            replies.append(http.get(f"/v1/adapters/{path}{suffix}"))
        for method, suffix in (
            ("DELETE", ""),
            ("DELETE", "/aliases/prod"),
            ("DELETE", "/pin"),
            ("POST", "/pin"),
            ("DELETE", "/merge"),
            ("POST", "/merge"),
            ("PUT", "/public"),
            ("DELETE", "/public"),
            ("PUT", "/shares/beta"),
            ("DELETE", "/shares/beta"),
        ):
            replies.append(http.request(method, f"/v1/adapters/{path}{suffix}"))
        replies.append(http.put(f"/v1/adapters/{path}/aliases/prod", json={"version": 1}))
        replies.append(http.put(f"/v1/adapters/{path}/eval", content=b"{}"))
        replies += practice(http, path)
    return replies


ROWS = b'{"prompt": "a", "completion": " b"}'


def practice(http: httpx.Client, path: str) -> list[httpx.Response]:
    """Every way to look at, or to change, what versions of an adapter are in use: with and without conditions."""
    canary = {"version": 1, "canary": {"version": 2, "weight": 0.5}}
    replies = []
    for headers in ({}, {"if-match": '"1"'}, {"if-match": "*"}, {"if-none-match": "*"}):
        for body in ({"version": 2}, {"version": 9}, {"version": 2, "force": True}, {"version": 2, "alias": "next"}):
            replies.append(http.post(f"/v1/adapters/{path}/promote", json=body, headers=headers))
        for alias in ("prod", "next"):
            replies.append(http.post(f"/v1/adapters/{path}/rollback", json={"alias": alias}, headers=headers))
            replies.append(http.put(f"/v1/adapters/{path}/aliases/{alias}", json=canary, headers=headers))
        replies.append(http.delete(f"/v1/adapters/{path}/aliases/prod", headers=headers))
    for selector in ("", "@1", "@2", "@9", "@prod", "@next"):
        replies.append(http.get(f"/v1/adapters/{path}{selector}/eval"))
        replies.append(http.put(f"/v1/adapters/{path}{selector}/eval", content=ROWS))
        replies.append(http.post("/v1/adapters/mine/versions", json={"source": f"{path}{selector}"}))
    for alias in ("prod", "next", "none"):
        replies.append(http.get(f"/v1/adapters/{path}/aliases/{alias}"))
    return replies


@pytest.mark.parametrize("loaded", [False, True])
def test_h76_anothers_adapter_is_an_absent_one(
    tenants: Tenants, a: httpx.Client, b: httpx.Client, loaded: bool
) -> None:
    assert push(a, HIDDEN, alias="prod").status_code in (200, 201)
    if loaded:
        assert a.post(f"/v1/adapters/{HIDDEN}/pin").json()["state"] == "device"
        answering(a, HIDDEN)
    for hidden, absent in (
        (f"acme/{HIDDEN}", f"acme/{ABSENT}"),
        (HIDDEN, ABSENT),
        (f"acme/{HIDDEN}", f"nobody/{ABSENT}"),
    ):
        for one, other in zip(everything(b, hidden), everything(b, absent), strict=True):
            assert visible(one) == visible(other), one.request.url
            assert one.status_code in (400, 404, 405, 409, 412), (one.request.method, one.request.url, one.status_code)
    for path in ("/v1/models", "/v1/adapters"):
        assert HIDDEN not in b.get(path).text
    near = b.post("/v1/completions", json={"model": f"{HIDDEN}x", "prompt": "x"})
    assert HIDDEN not in near.json()["error"]["message"].replace(f"{HIDDEN}x", ""), "no hint at what is hidden"
    assert a.get(f"/v1/adapters/{HIDDEN}").json()["aliases"] == ["prod"], "and nothing was changed"
    if loaded:
        a.delete(f"/v1/adapters/{HIDDEN}/pin")


def test_h76_versions_in_practice_are_their_owners_alone(tenants: Tenants, a: httpx.Client, b: httpx.Client) -> None:
    """acme's adapter has two versions, an eval file, a score, a history and a canary; to beta it has none of them."""
    for seed in (30, 31):
        files = form(seed) | {"eval": ("eval.jsonl", ROWS, "x/y")}
        assert a.post("/v1/adapters", data={"name": "practised"}, files=files).status_code == 201
    for body in ({"version": 1}, {"version": 2}, {"version": 1, "canary": {"version": 2, "weight": 0.5}}):
        assert a.put("/v1/adapters/practised/aliases/prod", json=body).status_code == 200
    assert a.post("/v1/adapters/practised/promote", json={"version": 1, "alias": "next"}).status_code == 200
    shown, before = state(a), len(tenants.rig.worker.seen)
    assert shown["prod"]["canary"] and len(shown["prod"]["history"]) == 3 and shown["eval"] == ROWS.decode()
    for hidden, absent in (
        ("acme%2Fpractised", f"acme%2F{ABSENT}"), ("acme/practised", f"acme/{ABSENT}"), ("practised", ABSENT),
    ):  # fmt: skip
        for one, other in zip(practice(b, hidden), practice(b, absent), strict=True):
            assert visible(one) == visible(other), (one.request.method, one.request.url)
            assert one.status_code in (404, 405, 409, 412), (one.request.method, one.request.url, one.text)
    assert state(a) == shown and len(tenants.rig.worker.seen) == before, "nothing was changed, and nothing measured"


def test_who_was_lent_an_adapter_sees_no_more_of_its_practice(a: httpx.Client, b: httpx.Client) -> None:
    files = form(32) | {"eval": ("eval.jsonl", ROWS, "x/y")}
    a.post("/v1/adapters", data={"name": "used", "alias": "prod"}, files=files)
    a.put("/v1/adapters/used/shares/beta")
    for reply in (
        b.get("/v1/adapters/acme%2Floan/eval"),
        b.put("/v1/adapters/acme%2Floan/eval", content=ROWS),
        b.get("/v1/adapters/acme%2Floan/aliases/prod"),
        b.put("/v1/adapters/acme%2Floan/aliases/prod", json={"version": 1}),
        b.post("/v1/adapters/acme%2Floan/promote", json={"version": 1}),
        b.post("/v1/adapters/acme%2Floan/promote", json={"version": 1, "force": True}),
        b.post("/v1/adapters/acme%2Floan/rollback", json={}),
    ):
        assert reply.status_code in (403, 404, 405), (reply.request.method, reply.request.url, reply.text)
        assert "completion" not in reply.text and '"history"' not in reply.text
    assert a.get("/v1/adapters/used/aliases/prod").json()["version"] == 1


def state(http: httpx.Client) -> dict[str, Any]:
    """All that is known of the adapter `practised`."""
    aliases = {word: http.get(f"/v1/adapters/practised/aliases/{word}").json() for word in ("prod", "next")}
    versions = http.get("/v1/adapters/practised/versions").json()
    return aliases | {"versions": versions, "eval": http.get("/v1/adapters/practised/eval").text}


def test_each_has_its_own_of_one_name(a: httpx.Client, b: httpx.Client) -> None:
    mine, theirs = push(a, "sql", 1).json(), push(b, "sql", 2).json()
    assert (mine["name"], theirs["name"], theirs["version"]) == ("sql", "sql", 1)
    assert (answering(a, "sql"), answering(b, "sql")) == (mine["id"], theirs["id"])
    assert answering(a, "acme/sql") == answering(a, f"{BASE}:acme/sql@1") == mine["id"]
    assert "sql" in [card["id"] for card in a.get("/v1/models").json()["data"]]
    assert a.delete("/v1/models/sql").status_code == 200
    assert answering(b, "sql") == theirs["id"]


def test_shared_adapters_are_used_and_not_changed(a: httpx.Client, b: httpx.Client, tenants: Tenants) -> None:
    id = push(a, "shared", 3, alias="prod").json()["id"]
    shared = a.put("/v1/adapters/shared/shares/beta").json()
    assert (shared["tenants"], shared["public"]) == (["beta"], False)
    assert answering(b, "acme/shared@prod") == id
    assert b.get("/v1/adapters/acme/shared").json()["name"] == "acme/shared"
    assert b.get("/v1/adapters/acme/shared@1").headers["etag"] == '"1"'
    assert [card["version"] for card in b.get("/v1/adapters/acme/shared/versions").json()["data"]] == [1]
    assert "acme/shared" in [card["id"] for card in b.get("/v1/models").json()["data"]]
    refused = b.delete("/v1/models/acme/shared")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_owner")
    with tenants.client("gamma") as c:
        assert c.get("/v1/adapters/acme/shared").status_code == 404
        assert a.put("/v1/adapters/shared/public").json()["public"] is True
        assert answering(c, "acme/shared") == id
        assert a.delete("/v1/adapters/shared/public").json()["tenants"] == ["beta"]
        assert c.get("/v1/adapters/acme/shared").status_code == 404
    assert a.delete("/v1/adapters/shared/shares/beta").json()["tenants"] == []
    assert b.get("/v1/adapters/acme/shared").status_code == 404
    assert a.get("/v1/adapters/shared/shares").json()["tenants"] == []


def test_d43_what_two_tenants_uploaded_outlives_one_of_them(tenants: Tenants, a: httpx.Client, b: httpx.Client) -> None:
    mine, theirs = push(a, "twin", 43), push(b, "twin", 43)
    id = mine.json()["id"]
    assert (mine.status_code, theirs.status_code, theirs.json()["id"]) == (201, 201, id)
    assert a.delete("/v1/adapters/twin").status_code == 200
    assert blobs(tenants, id), "the bytes stay while somebody's name is on them"
    assert answering(b, "twin") == id and b.get("/v1/adapters/twin").status_code == 200
    assert b.delete("/v1/adapters/twin").status_code == 200
    assert not blobs(tenants, id) and not tenants.rig.registry.is_used(id)


def blobs(tenants: Tenants, id: str) -> list[Path]:
    """What the store has of an adapter, past the upload's reader."""
    root = tenants.rig.services.form_dir.parent / "data"
    return [path for path in root.rglob("*") if id.removeprefix("sha256:") in path.name]


def test_h78_the_key_decides_whatever_else_is_said(tenants: Tenants, a: httpx.Client, b: httpx.Client) -> None:
    push(a, "own", 4)
    said = {"x-tenant": "acme", "tenant": "acme", "openai-organization": "acme", "x-forwarded-user": "acme"}
    assert b.get("/v1/adapters/own", headers=said).status_code == 404
    assert b.get("/v1/adapters/own?tenant=acme").status_code == 404
    body = {"model": "own", "prompt": "x", "tenant": "acme"}
    refused = b.post("/v1/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tenant")
    assert push(b, "own", 5, tenant="acme").status_code == 422
    assert push(b, "acme/own", 5).status_code == 400
    assert b.post("/v1/adapters", data={"name": "said"}, files=form(5), headers=said).status_code == 201
    assert (a.get("/v1/adapters/said").status_code, b.get("/v1/adapters/said").status_code) == (404, 200)
    plain: dict[str, object] = {"model": BASE, "prompt": "x", "max_tokens": 1, "user": "acme"}
    chat: dict[str, object] = {"model": BASE, "messages": [TURN], "max_tokens": 1, "user": "acme"}
    for path, asked in (("completions", plain), ("chat/completions", chat)):
        for http, tenant in ((a, "acme"), (b, "beta")):
            assert http.post(f"/v1/{path}", json=asked, headers=said).status_code == 200
            assert tenants.rig.worker.seen[-1].tenant == tenant, "the engine is told whose request it is"


TURN = {"role": "user", "content": "x"}


def guards(rig: ServerRig) -> list[tuple[str, str, Scope]]:
    """Every method and path with the scope that it needs."""
    return [
        (method, context.path or "", each.dependency.scope)
        for context in iter_route_contexts(rig.app.routes)
        for method in sorted(context.methods or ())
        for each in getattr(context.original_route, "dependencies", ())
        if isinstance(each.dependency, RequireScope)
    ]


ANSWERS = {("POST", "/v1/completions"), ("POST", "/v1/chat/completions")}
"""All that is sent to the server and changes nothing."""


def test_h77_a_key_that_only_reads_changes_nothing(tenants: Tenants, a: httpx.Client) -> None:
    push(a, "kept", 6)
    with tenants.client("acme", Scope.READ, Scope.INFER) as reader:
        before = a.get("/v1/adapters/kept/versions").json(), a.get("/v1/adapters").json()
        changes = [each for each in guards(tenants.rig) if each[2] not in (Scope.READ, Scope.INFER)]
        allowed = [each[:2] for each in guards(tenants.rig) if each not in changes]
        assert {each for each in allowed if each[0] not in ("GET", "HEAD")} == ANSWERS
        assert len(changes) > 20 and {method for method, _, _ in changes} >= {"POST", "PUT", "PATCH", "DELETE"}
        for method, path, needed in changes:
            url = re.sub(r"\{(id|name)[^}]*\}", "kept", path).replace("{alias}", "prod").replace("{tenant}", "beta")
            refused = reader.request(method, url, json={"version": 1})
            assert refused.status_code == 403, (method, path)
            if method != "HEAD":
                assert refused.json()["error"]["code"] == "scope_missing" and f"`{needed}`" in refused.text, path
                check_reply(refused)
        assert push(reader, "more").json()["error"]["code"] == "scope_missing"
        assert (a.get("/v1/adapters/kept/versions").json(), a.get("/v1/adapters").json()) == before
        assert reader.get("/v1/adapters/kept").status_code == 200
        assert answering(reader, "kept")


def test_h80_public_labels_name_no_tenant_and_stay_few(tenants: Tenants, a: httpx.Client) -> None:
    push(a, "measured", 7)
    answering(a, "measured")
    a.get("/v1/adapters/measured")
    for number in range(500):
        tenants.rig.services.metrics.observe(
            Admitted("r", AdapterId(f"sha256:{number:012x}{0:052x}"), "disk", 0.1, 0.0, 10, 0)
        )
    for number in range(20):
        a.get(f"/v1/nowhere{number}")
        a.get(f"/v1/adapters/nowhere{number}")
        a.request(f"ODD{number}", "/v1/models")
    tenants.rig.worker.delay_s = 0.02
    body = {"model": "measured", "prompt": "x", "max_tokens": 1000, "stream": True}
    with a.stream("POST", "/v1/completions", json=body) as running:
        assert running.status_code == 200
        text = a.get("/metrics").text
    tenants.rig.worker.delay_s = 0.0
    assert "rootstock_http_requests_total" in text and 'running_lora_adapters="sha256:' in text
    assert "acme" not in text and "beta" not in text and "measured" not in text
    assert "nowhere" not in text and "ODD" not in text
    labels = set(re.findall(r'adapter="([^"]*)"', text))
    assert "other" in labels and MAX_ADAPTER_LABELS < len(labels) <= MAX_ADAPTER_LABELS + 2, "`base` and `other` too"


def test_h81_the_log_has_the_tenant_and_the_key_but_no_secret_and_no_prompt(tenants: Tenants) -> None:
    key, text = tenants.store.create("acme", "default", tuple(Scope))
    with logged() as log, tenants.live.client(**bearer(text)) as http:
        push(http, "logged", 8, alias="prod")
        body = {"model": "logged", "prompt": SECRET_PROMPT, "max_tokens": 2}
        for stream in (False, True):
            assert http.post("/v1/completions", json=body | {"stream": stream}).status_code == 200
        message = {"role": "user", "content": SECRET_PROMPT}
        http.post("/v1/chat/completions", json={"model": "logged", "messages": [message], "max_tokens": 2})
        http.post("/v1/completions", json=body | {"model": SECRET_PROMPT})
        http.post("/v1/completions", json=body | {"temperature": SECRET_PROMPT})
        http.get(f"/v1/models/x?key={text}")
        http.put("/v1/adapters/logged/aliases/next", json={"version": 1})
        http.put("/v1/adapters/logged/shares/beta")
        http.delete("/v1/adapters/logged")
        http.get("/v1/models", headers=bearer(f"{text[:-1]}~"))
        eventually(lambda: '"status": 401' in log.getvalue())  # a request is logged after it is answered
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert text.partition("_")[2][:-1] not in log.getvalue() and SECRET_PROMPT not in log.getvalue()
    audit = {line["event"]: line for line in lines if line["event"] != "request"}
    for event in ("adapter_uploaded", "alias_set", "adapter_shared", "adapter_deleted"):
        assert (audit[event]["tenant"], audit[event]["key"], audit[event]["name"]) == ("acme", key.id, "logged"), event
    requests = [line for line in lines if line["event"] == "request"]
    assert {line.get("key") for line in requests if line["status"] != 401} == {key.id}
    assert ["key" in line for line in requests if line["status"] == 401] == [False], "nor whose it was not"


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """All that the server logs while the block runs, debug lines too, as JSON."""
    before, text = structlog.get_config(), io.StringIO()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer(default=str)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(text),
    )
    try:
        yield text
    finally:
        structlog.configure(**before)


def test_adapters_of_the_servers_start_are_everybodys_to_use(tenants: Tenants, tmp_path: Path, a: httpx.Client) -> None:
    server_catalog = tenants.rig.services.server_catalog
    version, _ = server_catalog.add_directory("servers-own", write_adapter(tmp_path / "own", 9))
    assert a.get("/v1/adapters/servers-own").status_code == 404
    server_catalog.shares.share("servers-own", EVERYBODY)
    assert answering(a, "servers-own") == version.id
    assert a.delete("/v1/adapters/servers-own").status_code == 404
