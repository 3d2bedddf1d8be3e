"""Web pages at a server that asks for no keys: what a browser sends for them is refused, whatever else calls is not."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.host_check import HostCheck
from tests.support.http import LiveServer, serve
from tests.support.keys import guarded_rig, headers_of
from tests.support.server_rig import BASE, form, make_rig

ASK = {"model": BASE, "prompt": "Once", "max_tokens": 1}
EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    host_check = HostCheck("myhost", ("llm.example.org",))
    made = make_rig(tmp_path_factory.mktemp("keyless"), host_check=host_check)
    with serve(made.app) as live:
        yield live
    made.registry.close()


@pytest.fixture
def http(keyless: LiveServer) -> Iterator[httpx.Client]:
    with keyless.client() as client:
        yield client


def code(reply: httpx.Response) -> str:
    return "" if reply.status_code < 400 else f"{reply.status_code} {reply.json()['error']['code']}"


def test_a_page_that_is_visited_uploads_and_pins_nothing(http: httpx.Client) -> None:
    upload = {"data": {"name": "sql"}, "files": form()}
    for origin in (EVIL, "null", "http://localhost:3000", "https://127.0.0.1"):
        headers = {"origin": origin}
        for reply in (
            http.post("/v1/adapters", headers=headers, data={"name": "sql"}, files=form()),
            http.post("/v1/adapters/sql/pin", headers=headers),
            http.post("/v1/completions", headers=headers | {"content-type": "text/plain"}, json=ASK),
            http.get("/metrics", headers=headers),
        ):
            assert code(reply) == "403 origin_refused", origin
            assert "keys create" in reply.text and "--trusted-host" in reply.text and "evil" not in reply.text
    assert http.get("/v1/adapters").json()["data"] == []
    assert http.post("/v1/adapters", **upload).status_code == 201, "curl -F sends no origin"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "192.168.0.7:8000",
        "0.0.0.0:8000",
        "a:b:c",
        "",
    ],
)
def test_a_name_of_somebody_elses_reaches_nothing_but_probes(host: str, http: httpx.Client) -> None:
    headers = {"host": host}
    for path in ("/v1/models", "/v1/adapters", "/v1/usage", "/metrics", "/docs"):
        assert code(http.get(path, headers=headers)) == "403 host_refused"
    assert (
        code(http.post("/v1/completions", json=ASK, headers=headers | {"origin": f"http://{host}"}))
        == "403 host_refused"
    )
    assert http.get("/readyz", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:9", "127.8.8.8", "[::1]:8000", "myhost:8000", "llm.example.org"]
)
def test_names_of_this_machine_are_answered(host: str, http: httpx.Client) -> None:
    assert http.post("/v1/completions", json=ASK, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("llm.example.org", "https://llm.example.org"),
        ("llm.example.org:443", "https://LLM.example.org"),
        ("127.0.0.1:8000", "https://llm.example.org"),
    ],
)
def test_pages_of_the_servers_own_and_of_trusted_names_are_let_in(host: str, origin: str, http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"host": host, "origin": origin}).status_code == 200


def test_whoever_opened_the_server_to_others_is_called_by_any_name_and_by_no_foreign_page(tmp_path: Path) -> None:
    made = make_rig(tmp_path, host_check=HostCheck("0.0.0.0", any_host=True))
    with serve(made.app) as live, live.client(host="rootstock:8000") as http:
        assert http.get("/metrics").status_code == 200
        assert code(http.get("/v1/models", headers={"origin": EVIL})) == "403 origin_refused"
    made.registry.close()


def test_a_key_lets_any_page_in_by_any_name(tmp_path: Path) -> None:
    with (
        guarded_rig(tmp_path, host_check=HostCheck()) as (rig, keys),
        serve(rig.app) as live,
        live.client(host="rootstock:8000", origin=EVIL) as http,
    ):
        assert http.get("/v1/models", headers=headers_of(keys, "acme")).status_code == 200
        assert http.get("/v1/models").status_code == 401
