"""The commands that talk to a server, with keys: whose adapters they change, and what a key that opens nothing gets."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.commands.chat import _Talk
from server.commands.errors import CommandFailed
from server.commands.http import Server
from server.commands.parcel import Parcel
from server.keys.store import KeyStore
from tests.server.test_cli import rootstock
from tests.support.face import write_adapter
from tests.support.http import LiveServer, serve
from tests.support.keys import EVERY_SCOPE, guarded_face


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, KeyStore]]:
    with guarded_face(tmp_path_factory.mktemp("keyed")) as (face, store), serve(face.app) as live:
        yield live, store


def key_of(store: KeyStore, tenant: str) -> str:
    return store.create(tenant, "default", EVERY_SCOPE)[1]


def test_push_share_and_use(tmp_path: Path, guarded: tuple[LiveServer, KeyStore]) -> None:
    live, store = guarded
    acme, beta = key_of(store, "acme"), key_of(store, "beta")
    folder = write_adapter(tmp_path / "sql")
    pushed = rootstock("adapters", "push", str(folder), url=live.url, key=acme)
    assert pushed.returncode == 0 and "sql@1 added" in pushed.stdout, pushed.stderr
    assert "sql" not in rootstock("adapters", "ls", url=live.url, key=beta).stdout
    shared = rootstock("adapters", "share", "sql", "--with", "beta", "--url", live.url, "--api-key", acme)
    assert "shared with beta" in shared.stdout, shared.stderr
    assert "acme/sql" in rootstock("adapters", "show", "acme/sql", url=live.url, key=beta).stdout
    neither = rootstock("adapters", "share", "sql", url=live.url, key=acme)
    assert neither.returncode == 2 and "--public" in neither.stderr


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
    parcel = Parcel(live.url, "taught", "prod", key)
    parcel.check_address(None)
    assert key not in repr(parcel)
    told = parcel.deliver(write_adapter(tmp_path / "taught", 2))
    assert "$ROOTSTOCK_API_KEY" in told and key not in told
    with pytest.raises(CommandFailed, match="API key"):
        Parcel(live.url, "taught", "prod").check_address(None)
    assert _Talk(Server(live.url, key), "taught@prod", None, 0.0, 3).turn("hello")
    assert capsys.readouterr().out.strip()
    assert httpx.get(f"{live.url}/v1/models", trust_env=False).status_code == 401
