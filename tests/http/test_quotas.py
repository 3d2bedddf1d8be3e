"""Quotas as a client meets them: OpenAI's headers on every answer, 429 with a time, 403 where time does not help."""

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import ByteSize

from server.meter import Meter
from server.quotas.quota import Quota
from server.quotas.tenant_quotas import Quotas
from tests.support.engine import FakeWorker
from tests.support.http import serve
from tests.support.keys import guarded_rig, headers_of
from tests.support.reply_checks import check_after
from tests.support.server_rig import BASE, adapter_config, adapter_weights, form, write_adapter

COMPLETION = {"model": BASE, "prompt": "Once", "max_tokens": 12, "ignore_eos": True}
QUOTAS = {
    "flood": Quota(requests_per_minute=3),
    "wordy": Quota(requests_per_minute=100, tokens_per_minute=60),
    "terse": Quota(tokens_per_minute=200),
    "full": Quota(adapters=1),
    "heavy": Quota(stored_bytes=ByteSize(10)),
    "eager": Quota(uploads_per_minute=1),
    "late": Quota(adapters=1),
    "grown": Quota(stored_bytes=ByteSize(len(adapter_weights()) + 100)),
    "crowd": Quota(adapters=1),
    "hasty": Quota(uploads_per_minute=2),
}


class Stopped:
    """A clock that stands, so that nothing refills while the test runs."""

    def __call__(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    """One client a tenant; `free` has no quota."""
    folder = tmp_path_factory.mktemp("quotas")
    meter = Meter(Quotas(None, QUOTAS, clock=Stopped()))
    with guarded_rig(folder, meter, FakeWorker(room=5)) as (rig, store), serve(rig.app) as live:
        made = {tenant: live.client(**headers_of(store, tenant)) for tenant in (*QUOTAS, "free")}
        yield made
        check_after(made["free"], rig)
        for client in made.values():
            client.close()


def complete(client: httpx.Client, **options: object) -> httpx.Response:
    return client.post("/v1/completions", json=COMPLETION | options)


def test_i83_a_flood_is_told_when_to_come_back_and_others_are_served(clients: dict[str, httpx.Client]) -> None:
    for left in ("2", "1", "0"):
        assert complete(clients["flood"]).headers["x-ratelimit-remaining-requests"] == left
    refused = complete(clients["flood"])
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "20"
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert refused.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert complete(clients["free"]).status_code == 200


def test_tokens_are_counted_with_max_tokens_and_put_right(clients: dict[str, httpx.Client]) -> None:
    """The prompt has 4 tokens."""
    streamed = complete(clients["wordy"], stream=True)
    assert streamed.headers["x-ratelimit-remaining-tokens"] == str(60 - 4 - 12), "the headers go out before the end"
    whole = complete(clients["wordy"], max_tokens=20, stop=[*"abcdefghijklmno"])
    used = whole.json()["usage"]["total_tokens"]
    assert used < 24
    assert whole.headers["x-ratelimit-remaining-tokens"] == str(60 - 16 - used)
    assert whole.headers["x-ratelimit-limit-tokens"] == "60"
    never = complete(clients["wordy"], max_tokens=100)
    assert never.status_code == 429 and never.headers["x-should-retry"] == "false"
    assert "retry-after" not in never.headers


def test_a_chat_that_names_no_length_asks_for_no_more_than_a_minute_has(clients: dict[str, httpx.Client]) -> None:
    """The context has 4096 tokens. OpenAI's clients send no `max_tokens`."""
    chat = {"model": BASE, "messages": [{"role": "user", "content": "Hello"}], "stop": ["c"], "n": 2}
    first = clients["terse"].post("/v1/chat/completions", json=chat)
    assert first.status_code == 200, first.text
    assert first.headers["x-ratelimit-remaining-tokens"] == str(200 - first.json()["usage"]["total_tokens"])
    early = clients["terse"].post("/v1/chat/completions", json=chat)
    assert early.status_code == 429 and int(early.headers["retry-after"]) < 60, "not never"
    long = chat | {"messages": [{"role": "user", "content": "Hello" * 50}]}
    never = clients["terse"].post("/v1/chat/completions", json=long)
    assert never.status_code == 429 and never.headers["x-should-retry"] == "false"
    assert "shorten the prompt" in never.json()["error"]["message"]


def test_what_the_engine_refuses_is_not_counted(clients: dict[str, httpx.Client]) -> None:
    before = complete(clients["wordy"], max_tokens=1).headers["x-ratelimit-remaining-requests"]
    assert complete(clients["wordy"], n=6, max_tokens=1).status_code == 429
    after = complete(clients["wordy"], max_tokens=1).headers["x-ratelimit-remaining-requests"]
    assert int(before) - int(after) == 1


def test_without_a_quota_there_are_no_headers(clients: dict[str, httpx.Client]) -> None:
    assert not [name for name in complete(clients["free"]).headers if name.startswith("x-ratelimit")]


def test_i85_whoever_fills_the_store_is_refused_and_nobody_else(clients: dict[str, httpx.Client]) -> None:
    def upload(tenant: str, name: str, seed: int) -> httpx.Response:
        return clients[tenant].post("/v1/adapters", data={"name": name}, files=form(seed))

    assert upload("full", "one", 0).status_code == 201
    assert upload("full", "one", 1).status_code == 201, "a version more is no adapter more"
    for tenant in ("full", "heavy"):
        refused = upload(tenant, "two", 2)
        assert refused.status_code == 403, refused.text
        assert refused.json()["error"]["code"] == "quota_exceeded"
        assert refused.headers["x-should-retry"] == "false"
    assert upload("eager", "one", 0).status_code == 201
    late = upload("eager", "one", 1)
    assert late.status_code == 429 and late.headers["retry-after"] == "60"
    assert upload("free", "one", 0).status_code == 201
    assert clients["full"].delete("/v1/adapters/one").status_code == 200
    assert upload("full", "two", 2).status_code == 201


def test_i85_copies_and_directories_count_as_what_is_sent_does(tmp_path: Path) -> None:
    quotas = {"few": Quota(adapters=1), "narrow": Quota(stored_bytes=ByteSize(len(adapter_weights()) - 1))}
    with contextlib.ExitStack() as stack:
        rig, store = stack.enter_context(guarded_rig(tmp_path, Meter(Quotas(None, quotas))))
        live = stack.enter_context(serve(rig.app))
        few, narrow = (stack.enter_context(live.client(**headers_of(store, tenant))) for tenant in quotas)
        assert rig.services.adapter_root is not None
        write_adapter(rig.services.adapter_root / "there")
        load = {"lora_name": "two", "lora_path": "there"}
        assert few.post("/v1/adapters", data={"name": "one"}, files=form()).status_code == 201
        for refused in (
            few.post("/v1/adapters/two/versions", json={"source": "one@1"}),
            few.post("/v1/load_lora_adapter", json=load),
            narrow.post("/v1/load_lora_adapter", json=load),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "quota_exceeded"), refused.text
        assert [version.name for version in rig.catalog.every()] == ["few/one"]
        check_after(few, rig)


def ordered(client: httpx.Client, name: str, seed: int) -> httpx.Response:
    order = {"name": name, "config": adapter_config().decode(), "size": len(adapter_weights(seed))}
    return client.post("/v1/adapters/uploads", json=order)


def whole(client: httpx.Client, name: str, seed: int) -> str:
    """An upload in pieces that only has to be finished: its path, with the digest."""
    begun, weights = ordered(client, name, seed), adapter_weights(seed)
    assert begun.status_code == 201, begun.text
    at = str(begun.headers["location"])
    assert client.patch(at, content=weights, headers={"upload-offset": "0"}).status_code == 202
    return f"{at}?digest=sha256:{hashlib.sha256(weights).hexdigest()}"


@pytest.mark.parametrize("tenant", ["late", "grown"])
def test_i85_quotas_hold_again_when_an_upload_is_finished(tenant: str, clients: dict[str, httpx.Client]) -> None:
    """Both were begun while there was room for one."""
    client = clients[tenant]
    first, second = whole(client, "first", 20), whole(client, "second", 21)
    assert client.put(first).status_code == 201
    refused = client.put(second)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "quota_exceeded"), refused.text
    assert client.get("/v1/adapters/second").status_code == 404
    assert ordered(client, "third", 23).status_code == 403, "no more is begun"
    client.delete("/v1/adapters/first")
    assert client.put(second).status_code == 201, "the upload was left as it was"


def test_d44_there_is_room_to_repair_what_was_damaged(tmp_path: Path) -> None:
    """Of the tenant's quota the damaged bytes take nothing, and the repaired ones what they took before."""
    meter = Meter(Quotas(None, {"grown": QUOTAS["grown"]}))
    with contextlib.ExitStack() as stack:
        rig, store = stack.enter_context(guarded_rig(tmp_path, meter))
        live = stack.enter_context(serve(rig.app))
        client = stack.enter_context(live.client(**headers_of(store, "grown")))
        assert client.put(whole(client, "first", 20)).status_code == 201
        id = rig.catalog.resolve("grown/first").id
        weights = rig.store.path(id) / "adapter_model.safetensors"
        assert ordered(client, "first", 20).status_code == 403
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        assert rig.store.quarantine_if_damaged(id)
        assert client.put(whole(client, "first", 20)).status_code == 200
        assert rig.catalog.quarantined() == frozenset()
        assert ordered(client, "second", 21).status_code == 403


def test_i85_of_many_that_are_finished_at_once_one_fits(clients: dict[str, httpx.Client]) -> None:
    client = clients["crowd"]
    ready = [whole(client, f"name-{number}", 30 + number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(client.put, ready))
    assert sorted(reply.status_code for reply in replies) == [201] + [403] * 7
    assert len(client.get("/v1/adapters").json()["data"]) == 1


def test_i85_finishing_has_a_rate_too(clients: dict[str, httpx.Client]) -> None:
    """A condition that fails lets an upload be finished again, and each time its file is read."""
    client = clients["hasty"]
    at = whole(client, "first", 22)
    for expected in (412, 412, 429):
        reply = client.put(at, headers={"if-match": '"9"'})
        assert reply.status_code == expected, reply.text
    assert reply.headers["retry-after"] == "30"
