"""Whose a merge is: of the name that asked for it, whoever else has the same bytes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from adapters.manifest import AdapterId
from adapters.sharing import EVERYBODY
from engine.errors import EngineStopped
from server.principal import Scope
from tests.http.test_tenants import Tenants, push
from tests.support.engine import FakeWorker
from tests.support.http import serve
from tests.support.keys import guarded_rig, headers_of
from tests.support.reply_checks import check_after
from tests.support.server_rig import make_rig, write_adapter


@pytest.fixture
def tenants(tmp_path: Path) -> Iterator[Tenants]:
    with guarded_rig(tmp_path) as (rig, store), serve(rig.app) as live:
        yield Tenants(rig, store, live)
        with live.client(**headers_of(store, "after")) as client:
            check_after(client, rig)


def state(http: httpx.Client, name: str) -> str:
    """As the card has it, wherever it is shown; an answer says the same."""
    shown = http.get(f"/v1/adapters/{name}").json()["state"]
    listed = next(card for card in http.get("/v1/adapters").json()["data"] if card["name"] == name)
    reply = http.post("/v1/completions", json={"model": name, "prompt": "x", "max_tokens": 1})
    assert listed["state"] == shown and (reply.headers["x-rootstock-tier"] == "merged") == (shown == "merged")
    return str(shown)


def code(reply: httpx.Response) -> tuple[int, str | None]:
    return reply.status_code, reply.json()["error"]["code"]


def test_h76_what_one_has_merged_is_not_merged_to_another_with_the_same_bytes(tenants: Tenants) -> None:
    with tenants.client("acme") as a, tenants.client("beta") as b:
        id = push(a, "hot", 1).json()["id"]
        assert push(b, "copy", 1).json()["id"] == id
        assert a.post("/v1/adapters/hot@1/merge").json()["state"] == "merged"
        assert (state(a, "hot"), state(b, "copy")) == ("merged", "device")
        assert code(b.delete("/v1/adapters/copy/merge")) == (409, "not_merged")
        assert b.delete("/v1/adapters/copy").status_code == 200, "it is beta's, and nothing of beta's is merged"
        assert code(a.delete("/v1/adapters/hot")) == (409, "merged")
        assert tenants.rig.worker.merged == id and state(a, "hot") == "merged"
        assert a.delete("/v1/adapters/hot/merge").json()["state"] == "disk"
        assert tenants.rig.worker.merged is None and a.delete("/v1/adapters/hot").status_code == 200


def test_h76_a_merge_that_two_asked_for_ends_with_the_second(tenants: Tenants) -> None:
    with tenants.client("acme") as a, tenants.client("beta") as b:
        push(a, "hot", 2), push(b, "copy", 2), push(b, "other", 3)
        for http, name in ((a, "hot"), (b, "copy")):
            assert http.post(f"/v1/adapters/{name}/merge").json()["state"] == "merged"
        assert a.delete("/v1/adapters/hot/merge").json()["state"] == "device"
        assert state(b, "copy") == "merged" and code(b.post("/v1/adapters/other/merge")) == (409, "merge_refused")
        assert a.delete("/v1/adapters/hot").status_code == 200
        b.delete("/v1/adapters/copy/merge")
        assert tenants.rig.worker.merged is None


def test_h76_a_pin_is_shown_to_the_name_that_asked_for_it(tenants: Tenants) -> None:
    with tenants.client("acme") as a, tenants.client("beta") as b:
        push(a, "hot", 4), push(b, "copy", 4)
        assert a.post("/v1/adapters/hot/pin").json()["pinned"]
        assert not b.get("/v1/adapters/copy").json()["pinned"]


def test_the_servers_own_is_merged_by_whoever_has_admin(tenants: Tenants, tmp_path: Path) -> None:
    server_catalog = tenants.rig.services.server_catalog
    server_catalog.add_directory("servers-own", write_adapter(tmp_path / "own", 5))
    server_catalog.shares.share("servers-own", EVERYBODY)
    with tenants.client("acme") as a, tenants.client("beta") as b:
        push(a, "shared", 6)
        a.put("/v1/adapters/shared/shares/beta")
        a.post("/v1/adapters/shared/merge")
        assert code(b.delete("/v1/models/acme/shared")) == (403, "not_owner"), "not that it is merged"
        a.delete("/v1/adapters/shared/merge")
        assert b.post("/v1/adapters/servers-own/merge").json()["state"] == "merged"
        assert code(b.delete("/v1/adapters/servers-own")) == (404, "adapter_not_found")
        assert b.delete("/v1/adapters/servers-own/merge").status_code == 200
        with tenants.client("beta", Scope.READ, Scope.WRITE) as writer:
            assert code(writer.post("/v1/adapters/servers-own/merge")) == (403, "scope_missing")


def test_two_names_of_one_tenant(tenants: Tenants) -> None:
    with tenants.client("acme") as a:
        push(a, "one", 7), push(a, "two", 7)
        a.post("/v1/adapters/one/merge")
        assert (state(a, "one"), state(a, "two")) == ("merged", "device")
        assert a.delete("/v1/adapters/two").status_code == 200
        assert code(a.delete("/v1/adapters/one")) == (409, "merged")


def test_what_the_engine_ended_is_merged_to_nobody_who_does_not_ask_again(tenants: Tenants) -> None:
    """As a new engine begins, or when the bytes are deleted."""
    with tenants.client("acme") as a, tenants.client("beta") as b:
        push(a, "hot", 8), push(b, "copy", 8)
        a.post("/v1/adapters/hot/merge")
        tenants.rig.worker.merged = None
        assert state(a, "hot") != "merged" and code(a.delete("/v1/adapters/hot/merge")) == (409, "not_merged")
        b.post("/v1/adapters/copy/merge")
        assert (state(a, "hot"), state(b, "copy")) == ("device", "merged")
        assert a.delete("/v1/adapters/hot").status_code == 200 and state(b, "copy") == "merged"


class Slow(FakeWorker):
    """`meanwhile` happens before an adapter is merged."""

    meanwhile: Callable[[], object] | None = None

    async def merge(self, id: AdapterId) -> None:
        if self.meanwhile is not None:
            self.meanwhile()
        await super().merge(id)


def test_a_name_deleted_while_its_merge_waits_leaves_nothing_merged(tmp_path: Path) -> None:
    worker = Slow()
    rig = make_rig(tmp_path, worker)
    with serve(rig.app) as live, live.client() as http:
        push(http, "gone", 9), push(http, "twin", 9)
        worker.meanwhile = lambda: rig.catalog.delete("gone")
        assert code(http.post("/v1/adapters/gone/merge")) == (404, "adapter_not_found")
        assert worker.merged is None
    rig.registry.close()


class Full(FakeWorker):
    """Refuses pins once it is `full`."""

    full = False

    async def pin(self, id: AdapterId) -> None:
        if self.full:
            raise EngineStopped("stopped")
        await super().pin(id)


def test_a_pin_that_fails_is_not_remembered_and_one_from_before_is_kept(tmp_path: Path) -> None:
    worker = Full()
    rig = make_rig(tmp_path, worker)
    with serve(rig.app) as live, live.client() as http:
        push(http, "before", 10), push(http, "new", 11)
        assert http.post("/v1/adapters/before/pin").status_code == 200
        worker.full = True
        worker.pinned.clear()
        for name in ("before", "new"):
            assert http.post(f"/v1/adapters/{name}/pin").status_code == 503
        assert [version.name for version in rig.catalog.pinned()] == ["before"]
    rig.registry.close()
