"""`rootstock adapters push`: what is there is not sent, what was cut off goes on, what is refused is told."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.checkpoint import read_directory
from adapters.content_id import manifest_of
from adapters.manifest import Kind
from server.commands import push as pushing
from server.commands.client import Client, _content
from server.commands.errors import CommandFailed, Refused, Unreachable
from server.commands.push import Backoff, push
from tests.support.adapters import KINDS, MLP, llama_shape
from tests.support.adapters import write_adapter as write_for
from tests.support.http import LiveServer, eventually
from tests.support.served import _free_port
from tests.support.server_rig import ServerRig, write_adapter


class Flaky(Client):
    """One whose connection breaks off in the middle of every second chunk, after the server has read some."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.sent, self.breaks = 0, True

    def send(self, path: str, pieces: Iterator[bytes], headers: Mapping[str, str]) -> Any:
        self.breaks = not self.breaks
        if self.breaks:
            raise Unreachable("broken off")
        self.sent += 1
        return super().send(path, pieces, headers)


def unwatched(offset: int) -> None:
    """Nobody looks."""


def at_once() -> Backoff:
    return Backoff(sleep=lambda seconds: None)


def sent(server: LiveServer) -> int:
    with server.client() as http:
        return len(http.get("/v1/adapters/uploads").json()["data"])


def test_what_is_there_is_not_sent_again(live: LiveServer, rig: ServerRig, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "once", 400)
    card, created = push(Client(live.url), folder, "once", "prod", unwatched)
    assert created and card["aliases"] == ["prod"]
    before = sent(live)
    again, created = push(Client(live.url), folder, "once", "next", unwatched)
    assert not created and again["id"] == card["id"] and again["aliases"] == ["next", "prod"]
    assert sent(live) == before
    copied, created = push(Client(live.url), folder, "another", None, unwatched)
    assert created and (copied["name"], copied["version"], copied["id"]) == ("another", 1, card["id"])
    assert sent(live) == before, "it is there under another name"


def test_what_is_damaged_is_sent_again(live: LiveServer, rig: ServerRig, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "damaged", 404)
    card, _ = push(Client(live.url), folder, "damaged", None, unwatched)
    weights = next(rig.store.path(card["id"]).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert rig.store.quarantine_if_damaged(card["id"])
    with live.client() as http:
        refused = http.post("/v1/adapters/copy-of-it/versions", json={"source": "damaged@1"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "adapter_corrupt")
    before = sent(live)
    _, created = push(Client(live.url), folder, "elsewhere", None, unwatched)
    assert created and sent(live) == before + 1 and not rig.store.quarantined()


@pytest.mark.parametrize("kind", KINDS)
def test_the_id_needs_no_base(tmp_path: Path, kind: Kind) -> None:
    shape = llama_shape(layers=3)
    for number, targets in enumerate((("q_proj", "v_proj"), MLP)):
        folder = write_for(tmp_path / str(number), shape, kind=kind, targets=targets, ranks={"up_proj": 2})
        found = manifest_of(folder)
        assert found is not None and found.id == read_directory(folder, shape).manifest.id
    folder = write_for(tmp_path / "all", shape, kind=kind, targets=[line.name for line in shape.linears.values()][:7])
    config = json.loads((folder / "adapter_config.json").read_text()) | {"target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    found = manifest_of(folder)
    assert found is not None and found.id == read_directory(folder, shape).manifest.id
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    assert manifest_of(folder) is None


def test_a_connection_that_breaks_off_goes_on(
    live: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "CHUNK_BYTES", 100)
    folder = write_adapter(tmp_path / "cut", 401)
    size = (folder / "adapter_model.safetensors").stat().st_size
    client, heard = Flaky(live.url), list[int]()
    card, created = push(client, folder, "cut-off", None, heard.append, at_once())
    assert created and card["version"] == 1
    assert client.sent == -(-size // 100) and heard[-1] == size


def test_what_will_not_change_is_not_tried_again(live: LiveServer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "bad", 402)
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    backoff = Backoff(sleep=lambda seconds: pytest.fail("it waited"))
    with pytest.raises(CommandFailed, match="too short|header"):
        push(Client(live.url), folder, "bad", None, unwatched, backoff)
    waited: list[float] = []
    with pytest.raises(Unreachable):
        push(Client("http://127.0.0.1:9"), folder, "bad", None, unwatched, Backoff(20, waited.append))
    assert 20 <= sum(waited) < 29 and max(waited) <= 8


class Proxied(Client):
    """One that meets a proxy, which answers with a page of its own, once."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(url)
        self.status = status

    def send(self, path: str, pieces: Iterator[bytes], headers: Mapping[str, str]) -> Any:
        if self.status:
            status, self.status = self.status, 0
            page = httpx.Response(status, html="<h1>Busy</h1>", request=httpx.Request("PATCH", "http://proxy"))
            return _content(page)
        return super().send(path, pieces, headers)


@pytest.mark.parametrize("status", [429, 502])
def test_a_proxys_own_page_is_waited_out(live: LiveServer, tmp_path: Path, status: int) -> None:
    folder = write_adapter(tmp_path / "behind", 404 + status)
    assert push(Proxied(live.url, status), folder, f"behind{status}", None, unwatched, at_once())[1]


def test_a_page_that_will_not_change_is_told(live: LiveServer, tmp_path: Path) -> None:
    backoff = Backoff(sleep=lambda seconds: pytest.fail("it waited"))
    with pytest.raises(Refused, match="413 without JSON"):
        push(Proxied(live.url, 413), write_adapter(tmp_path / "large", 405), "large", None, unwatched, backoff)


def test_a_certificate_that_is_not_trusted_is_told_at_once() -> None:
    with pytest.raises(CommandFailed, match="SSL_CERT_FILE") as failed, Client("https://here")._client():
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate")
    assert not isinstance(failed.value, Unreachable), "which would be tried again for two minutes"


@contextlib.contextmanager
def rig_process(port: int, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-m", "tests.support.server_rig_process", str(port), str(folder)])
    try:
        eventually(lambda: answers(port), within_s=120)
        yield process
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    return False


def test_a_server_killed_in_the_middle_gets_the_rest_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 while chunks arrive: the push waits, asks where it was, and ends with the adapter in place."""
    monkeypatch.setattr(pushing, "CHUNK_BYTES", 64)
    folder, port = write_adapter(tmp_path / "adapter", 403), _free_port()
    halfway, back = threading.Event(), threading.Event()
    outcome: list[tuple[Any, bool]] = []

    def watch(offset: int) -> None:
        if offset >= 192 and not halfway.is_set():
            halfway.set()
            assert back.wait(120)

    def work() -> None:
        outcome.append(push(Client(f"http://127.0.0.1:{port}"), folder, "survivor", None, watch))

    pusher = threading.Thread(target=work)
    with rig_process(port, tmp_path / "data") as process:
        pusher.start()
        assert halfway.wait(120)
        process.kill()
        process.wait()
        back.set()
        with rig_process(port, tmp_path / "data"):
            pusher.join(120)
    assert outcome and outcome[0][1] and outcome[0][0]["name"] == "survivor"
