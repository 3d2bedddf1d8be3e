"""The commands that talk to a server, with keys: whose adapters they change, and what a key that opens nothing gets."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.commands.chat import _Talk
from server.commands.client import Client
from server.commands.deliver import Destination
from server.commands.errors import CommandFailed
from server.commands.push import push
from server.keys.store import KeyStore
from server.principal import Scope
from tests.server.test_cli import rootstock
from tests.server.test_push import unwatched
from tests.support.http import LiveServer, serve
from tests.support.keys import guarded_rig, headers_of, key_of
from tests.support.server_rig import write_adapter


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, KeyStore]]:
    with guarded_rig(tmp_path_factory.mktemp("keyed")) as (rig, store), serve(rig.app) as live:
        yield live, store


def test_push_share_and_use(tmp_path: Path, guarded: tuple[LiveServer, KeyStore]) -> None:
    live, store = guarded
    acme, beta = key_of(store, "acme"), key_of(store, "beta")
    folder = write_adapter(tmp_path / "sql")
    pushed = rootstock("adapters", "push", str(folder), url=live.url, key=acme)
    assert pushed.returncode == 0 and "sql@1 added" in pushed.stdout, pushed.stderr
    assert "sql" not in rootstock("adapters", "ls", url=live.url, key=beta).stdout
    shared = rootstock("adapters", "share", "sql", "--with", "beta", "--url", live.url, "--api-key", acme)
    assert "shared with beta" in shared.stdout, shared.stderr
    for words, told in (
        (("share", "--public"), "every tenant"),
        (("unshare", "--with", "beta"), "every tenant"),
        (("unshare", "--public"), "nobody"),
        (("share", "--with", "beta"), "beta"),
    ):
        said = rootstock("adapters", words[0], "sql", *words[1:], url=live.url, key=acme)
        assert said.stdout == f"sql is shared with {told}\n", said.stderr
    assert "acme/sql" in rootstock("adapters", "show", "acme/sql", url=live.url, key=beta).stdout
    neither = rootstock("adapters", "share", "sql", url=live.url, key=acme)
    assert neither.returncode == 2 and "--public" in neither.stderr


def uploads(live: LiveServer, key: str) -> int:
    with live.client(authorization=f"Bearer {key}") as client:
        return len(client.get("/v1/adapters/uploads").json()["data"])


def test_push_sends_nothing_that_the_tenant_has_under_any_name(
    tmp_path: Path, guarded: tuple[LiveServer, KeyStore]
) -> None:
    live, store = guarded
    first, other = key_of(store, "first"), key_of(store, "other")
    folder = write_adapter(tmp_path / "original", 50)
    card, created = push(Client(live.url, first), folder, "original", None, unwatched)
    assert created and uploads(live, first) == 1
    same, created = push(Client(live.url, first), folder, "other-name", "prod", unwatched)
    assert created and (same["id"], same["name"], same["aliases"]) == (card["id"], "other-name", ["prod"])
    _, created = push(Client(live.url, first), folder, "other-name", "prod", unwatched)
    assert not created and uploads(live, first) == 1
    theirs, created = push(Client(live.url, other), folder, "original", None, unwatched)
    assert created and theirs["version"] == 1 and uploads(live, other) == 1, "what another has is nobody's business"


def test_h76_content_of_others_is_told_by_no_id_and_copied_by_no_name(
    tmp_path: Path, guarded: tuple[LiveServer, KeyStore]
) -> None:
    """Neither private nor shared: whoever an adapter is shared with uses it, and keeps nothing when the share ends."""
    live, store = guarded
    acme = Client(live.url, key_of(store, "acme"))
    card, _ = push(acme, write_adapter(tmp_path / "kept", 51), "kept", None, unwatched)
    shared, _ = push(acme, write_adapter(tmp_path / "shared", 52), "shared", None, unwatched)
    acme.call("PUT", "/v1/adapters/shared/public")
    absent = "sha256:" + "0" * 64
    with live.client(**headers_of(store, "beta")) as beta:
        lists = [beta.get("/v1/adapters", params={"id": id}) for id in (card["id"], shared["id"], absent)]
        assert [reply.json() for reply in lists] == [{"object": "list", "data": []}] * 3
        hidden = [
            beta.post("/v1/adapters/mine/versions", json={"source": source})
            for source in ("acme/kept@1", "acme/none@1", f"acme/kept@{card['id']}", "kept@1", "none@1")
        ]
        assert {reply.status_code for reply in hidden} == {404}
        assert len({reply.text for reply in hidden}) == 1
        copied = beta.post("/v1/adapters/mine/versions", json={"source": "acme/shared@1"})
        assert (copied.status_code, copied.json()["error"]["code"]) == (403, "not_owner")
        assert beta.get("/v1/adapters/mine").status_code == 404


def test_a_key_that_may_not_write_pushes_nothing(tmp_path: Path, guarded: tuple[LiveServer, KeyStore]) -> None:
    live, store = guarded
    reader = key_of(store, "acme", Scope.READ, Scope.INFER)
    folder = write_adapter(tmp_path / "refused", 53)
    done = rootstock("adapters", "push", str(folder), url=live.url, key=reader)
    assert done.returncode == 1 and "`write`" in done.stderr and reader not in done.stderr
    with live.client(authorization=f"Bearer {reader}") as client:
        assert client.get("/v1/adapters/refused").status_code == 404
    unknown = rootstock("adapters", "push", str(folder), url=live.url)
    assert unknown.returncode == 1 and "API key" in unknown.stderr


def test_a_key_that_opens_nothing_is_told_and_not_shown(guarded: tuple[LiveServer, KeyStore]) -> None:
    wrong = f"sk-{'0' * 16}_{'A' * 43}"
    for key in ("", wrong):
        done = rootstock("adapters", "ls", url=guarded[0].url, key=key)
        assert done.returncode == 1 and "API key" in done.stderr
        assert "Traceback" not in done.stderr and wrong not in done.stderr


def test_chat_and_train_send_the_key(
    tmp_path: Path, guarded: tuple[LiveServer, KeyStore], capsys: pytest.CaptureFixture[str]
) -> None:
    live, store = guarded
    key = key_of(store, "acme")
    destination = Destination(live.url, "taught", "prod", key)
    destination.check_address(None)
    assert key not in repr(destination)
    told = destination.deliver(write_adapter(tmp_path / "taught", 2))
    assert "$ROOTSTOCK_API_KEY" in told and key not in told
    with pytest.raises(CommandFailed, match="API key"):
        Destination(live.url, "taught", "prod").check_address(None)
    assert _Talk(Client(live.url, key), "taught@prod", None, 0.0, 3).turn("hello")
    assert capsys.readouterr().out.strip()
    assert httpx.get(f"{live.url}/v1/models", trust_env=False).status_code == 401
