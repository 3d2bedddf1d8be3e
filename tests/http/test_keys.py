"""Keys: every route asks for one, before it reads anything, and never says what is wrong with it."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from server.deps import RequireScope
from server.keys.store import KeyStore
from server.principal import Scope
from tests.support.http import LiveServer, serve
from tests.support.keys import bearer, guarded_rig, headers_of
from tests.support.reply_checks import check_after, check_reply
from tests.support.server_rig import BASE, ServerRig, form
from tests.support.upload_steps import connected, read_reply

OPEN = {"/livez", "/readyz", "/health", "/version"}
"""All that answers without a key."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerRig, KeyStore, LiveServer]]:
    with guarded_rig(tmp_path_factory.mktemp("guarded")) as (rig, store), serve(rig.app) as live:
        yield rig, store, live


@pytest.fixture(autouse=True)
def _as_before(guarded: tuple[ServerRig, KeyStore, LiveServer]) -> Iterator[None]:
    """After each test, whoever has a key is served, and nothing is left of what was asked without one."""
    yield
    rig, store, live = guarded
    with live.client(**headers_of(store, "after")) as client:
        check_after(client, rig)


@pytest.fixture(scope="module")
def http(guarded: tuple[ServerRig, KeyStore, LiveServer]) -> Iterator[httpx.Client]:
    with guarded[2].client() as client:
        yield client


@pytest.fixture(scope="module")
def store(guarded: tuple[ServerRig, KeyStore, LiveServer]) -> KeyStore:
    return guarded[1]


def routes(rig: ServerRig) -> list[tuple[str, str]]:
    found = [(method, context.path or "") for context in iter_route_contexts(rig.app.routes)
             for method in sorted(context.methods or ())]  # fmt: skip
    assert len(found) > 20, "the walk finds the routes"
    return found


def spelled(path: str) -> str:
    """A route's path as somebody might ask for it."""
    return re.sub(r"\{[^}]*\}", "x", path)


def test_h75_every_route_but_the_probes_asks_for_a_key(
    guarded: tuple[ServerRig, KeyStore, LiveServer], http: httpx.Client
) -> None:
    bodies = set()
    for method, path in routes(guarded[0]):
        url = spelled(path)
        for headers in ({}, {"host": "x/health?"}, {"host": "x", "x-forwarded-prefix": "/health"}):
            reply = http.request(method, url, headers=headers)
            if path in OPEN:
                assert reply.status_code == 200, path
                continue
            assert reply.status_code == 401, (method, path)
            assert reply.headers["www-authenticate"].startswith("Bearer")
            if method != "HEAD":
                bodies.add(reply.content)
                assert reply.json()["error"]["code"] == "invalid_api_key"
                check_reply(reply)
    assert len(bodies) == 1
    assert http.get("/health/../v1/models").status_code == 401
    assert http.get("/v1/nothing").status_code == 404


def test_h75_the_guard_stands_at_each_route(guarded: tuple[ServerRig, KeyStore, LiveServer]) -> None:
    for context in iter_route_contexts(guarded[0].app.routes):
        guards = [
            each
            for each in getattr(context.original_route, "dependencies", ())
            if isinstance(each.dependency, RequireScope)
        ]
        assert len(guards) == (context.path not in OPEN), context.path


def test_h75_one_refusal_for_all_that_can_be_wrong(http: httpx.Client, store: KeyStore) -> None:
    revoked, revoked_text = store.create("acme", "default", [Scope.INFER])
    store.revoke(revoked.id)
    _, expired = store.create("acme", "default", [Scope.INFER], timedelta(0))
    _, good = store.create("acme", "default", [Scope.INFER])
    wrong = f"sk-{'0' * 16}_{'A' * 43}"
    half = good[:-4] + ("AAAA" if not good.endswith("AAAA") else "BBBB")
    replies = [http.get("/v1/models", headers={})]
    for text in (revoked_text, expired, wrong, half, "sk-", good.upper(), f"{good} {good}", "x" * 4000):
        replies.append(http.get("/v1/models", headers=bearer(text)))
    replies.append(http.get("/v1/models", headers={"authorization": f"Basic {good}"}))
    replies.append(http.get("/v1/models", headers=[("authorization", f"Bearer {good}")] * 2))
    replies.append(http.get("/v1/models", headers={"x-api-key": good}))
    replies.append(http.get(f"/v1/models?api_key={good}"))
    assert {reply.status_code for reply in replies} == {401}
    assert len({reply.content for reply in replies}) == 1
    headers = [dict(reply.headers) | {"x-request-id": "", "date": ""} for reply in replies]
    assert all(each == headers[0] for each in headers)


def test_h75_who_has_no_key_is_told_before_a_body_has_come(guarded: tuple[ServerRig, KeyStore, LiveServer]) -> None:
    """A head that promises a body which is never sent."""
    asked = [(method, path) for method, path in routes(guarded[0]) if method in ("POST", "PUT", "PATCH")]
    assert len(asked) > 15
    for method, path in asked:
        with connected(guarded[2]) as client:
            client.settimeout(5)
            client.sendall(f"{method} {spelled(path)} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n".encode())
            assert read_reply(client).status_code == 401, (method, path)


def test_h75_who_has_no_key_is_told_whatever_the_body_is(http: httpx.Client) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter", "/v1/adapters"):
        for body in (b"{", b"[" * 100_000, b'{"model": NaN}', b"\xff", b"x" * (5 << 20)):
            assert http.post(path, content=body, headers={"content-type": "application/json"}).status_code == 401


def test_h77_a_scope_that_is_missing_is_403_and_named(http: httpx.Client, store: KeyStore) -> None:
    only = {scope: headers_of(store, "acme", scope) for scope in Scope}
    body = {"model": BASE, "prompt": "x", "max_tokens": 1}
    asked: dict[Scope, Callable[[dict[str, str]], httpx.Response]] = {
        Scope.INFER: lambda headers: http.post("/v1/completions", json=body, headers=headers),
        Scope.READ: lambda headers: http.get("/v1/models", headers=headers),
        Scope.WRITE: lambda headers: http.post("/v1/adapters", data={"name": "h77"}, files=form(), headers=headers),
        Scope.ADMIN: lambda headers: http.get("/metrics", headers=headers),
    }
    for needed, ask in asked.items():
        for scope, headers in only.items():
            reply = ask(headers)
            assert reply.is_success if scope is needed else reply.status_code == 403, (needed, scope)
            if scope is not needed:
                assert reply.json()["error"]["code"] == "scope_missing"
                assert f"`{needed}`" in reply.json()["error"]["message"]


def test_h80_what_describes_the_server_is_the_admins(http: httpx.Client, store: KeyStore) -> None:
    admin, other = (
        headers_of(store, "acme", Scope.ADMIN),
        headers_of(store, "acme", Scope.READ, Scope.INFER, Scope.WRITE),
    )
    for path in ("/metrics", "/docs", "/openapi.json"):
        assert http.get(path).status_code == 401
        assert http.get(path, headers=other).status_code == 403
        assert http.get(path, headers=admin).status_code == 200
    for path in ("/docs/oauth2-redirect", "/redoc"):
        assert http.get(path, headers=admin).status_code == 404


def test_a_revocation_holds_from_the_next_request_on(http: httpx.Client, store: KeyStore) -> None:
    key, text = store.create("acme", "default", [Scope.READ])
    assert http.get("/v1/models", headers=bearer(text)).status_code == 200
    new, new_text = store.rotate(key.id, timedelta(days=1))
    for each in (text, new_text):
        assert http.get("/v1/models", headers=bearer(each)).status_code == 200
    store.revoke(key.id)
    assert http.get("/v1/models", headers=bearer(text)).status_code == 401
    assert http.get("/v1/models", headers=bearer(new_text)).status_code == 200
    assert new.replaces == key.id


def test_the_description_says_that_keys_are_taken(http: httpx.Client, store: KeyStore) -> None:
    described = http.get("/openapi.json", headers=headers_of(store, "acme")).json()
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert "security" in described["paths"]["/v1/models"]["get"]
    assert "security" not in described["paths"]["/livez"]["get"]
    assert json.dumps(described)


def test_a_server_without_keys_asks_for_none(tmp_path: Path, live: LiveServer) -> None:
    with live.client() as anyone:
        assert anyone.get("/v1/models", headers=bearer("unused")).status_code == 200
        assert anyone.get("/docs").status_code == anyone.get("/openapi.json").status_code == 200
