"""Every route keeps the same manners: OpenAI's envelope, a request id, no echo, no traceback."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest

from adapters.checkpoint import Checkpoint, read
from loader.shape import BaseShape
from server.lifecycle import Phase
from tests.support.engine import FakeWorker
from tests.support.http import eventually, serve
from tests.support.server_rig import BASE, ServerRig, adapter_config, adapter_weights, form, make_rig
from tests.support.upload_steps import begin, connected, finish, read_reply, rest

ODD = "zq-9f1"  # what must not come back


def routes(rig: ServerRig) -> list[tuple[str, str]]:
    """Every method and path that the application documents; HEAD is a GET without a body to look at."""
    paths = rig.app.openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods if method != "head"]


def check(reply: httpx.Response) -> None:
    assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])
    if reply.status_code < 400:
        return
    error = reply.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error) and error["code"]
    assert ODD not in reply.text
    assert "Traceback" not in reply.text and "/work" not in reply.text and ".py" not in reply.text


def test_there_are_routes(rig: ServerRig) -> None:
    assert len(routes(rig)) > 20


def test_every_route_with_nothing(http: httpx.Client, rig: ServerRig) -> None:
    for method, path in routes(rig):
        reply = http.request(method, re.sub(r"\{[^}]*\}", ODD, path))
        assert reply.status_code < 500, (method, path, reply.text)
        check(reply)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"zq-9f1": "zq-9f1"}'])
def test_every_route_with_odd_bodies(content: bytes, http: httpx.Client, rig: ServerRig) -> None:
    for method, path in routes(rig):
        url = re.sub(r"\{[^}]*\}", "missing", path)
        for kind in ("application/json", "multipart/form-data; boundary=x", "multipart/form-data"):
            reply = http.request(method, url, content=content, headers={"content-type": kind})
            assert reply.status_code < 500, (method, path, reply.text)
            if b"zq" not in content:
                check(reply)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"max_token": 3}, "max_token", "did you mean `max_tokens`?"),
        ({"messages": [{"role": "user", "content": "hi", "nam": "a"}]}, "messages[0].nam", "did you mean `name`?"),
        ({"zzzzzz": 3}, "zzzzzz", "leave it out."),
    ],
)
def test_a_field_that_is_not_there_is_named_with_the_nearest(
    fields: dict[str, object], param: str, says: str, http: httpx.Client
) -> None:
    body = {"model": BASE, "messages": [{"role": "user", "content": "hi"}], **fields}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == (param, "validation_error")
    assert error["message"].startswith(f"`{param}`: this field is not known here; ") and error["message"].endswith(says)


@pytest.mark.parametrize("host", ["x/health?", "x", "a:b:c", ""])
def test_the_host_header_changes_nothing(host: str, http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"host": host}).json()["data"][0]["id"] == BASE


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    for method, path, status, code in (
        ("GET", f"/{ODD}", 404, "route_not_found"),
        ("PATCH", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
    ):
        reply = http.request(method, path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        check(reply)
    assert "POST" in http.get("/v1/completions").headers["allow"]


def test_a_clients_request_id_is_not_ours(http: httpx.Client) -> None:
    replies = [http.get("/v1/models", headers={"x-request-id": ODD}) for _ in range(2)]
    assert len({reply.headers["x-request-id"] for reply in replies}) == 2
    assert all(ODD not in reply.headers["x-request-id"] for reply in replies)


def test_our_bugs_are_500_without_details(tmp_path: Path) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError(ODD)

    rig = make_rig(tmp_path)
    object.__setattr__(rig.services, "tokenizer", Broken())
    with serve(rig.app) as live, live.client() as client:
        reply = client.post("/v1/completions", json={"model": BASE, "prompt": "x"})
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "internal_error"
        check(reply)
        assert client.get("/v1/models").status_code == 200
    rig.registry.close()


def test_health_version_and_metrics(http: httpx.Client, rig: ServerRig) -> None:
    assert http.get("/livez").json() == {"status": "alive", "engine_restarts": 0}
    assert http.get("/readyz").json() == {"status": "ready"}
    assert http.get("/health").content == b""
    assert http.get("/version").json()["base"] == BASE
    http.post("/v1/completions", json={"model": BASE, "prompt": "x"})
    text = http.get("/metrics").text
    assert 'rootstock_http_requests_total{method="POST",route="/v1/completions",status="200"}' in text
    info = 'vllm:lora_requests_info{max_lora="64",running_lora_adapters="",waiting_lora_adapters=""}'
    assert info in text
    assert "vllm:num_requests_running" in text


def test_g67_a_draining_server_refuses_all_that_is_new_and_stays_alive(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    with serve(rig.app) as live, live.client() as client:
        rig.services.lifecycle.drain()
        for method, path in set(routes(rig)) - {("DELETE", "/v1/adapters/uploads/{id}")}:
            if method != "GET":
                refused = client.request(method, re.sub(r"\{[^}]*\}", ODD, path), json={})
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining"), (method, path)
                check(refused)
        reply = client.post("/v1/completions", json={"model": BASE, "prompt": "x"})
        assert reply.status_code == 503
        assert reply.headers["retry-after"]
        assert reply.json()["error"]["code"] == "draining"
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        rig.services.lifecycle.phase = Phase.STARTING
        assert (
            client.post("/v1/completions", json={"model": BASE, "prompt": "x"}).json()["error"]["code"] == "not_ready"
        )
        rig.worker.silent_s = 1000.0
        assert client.get("/livez").json()["status"] == "hung"
        assert client.get("/livez").status_code == 503
        rig.worker.alive = False
        assert client.get("/livez").status_code == 503
        assert client.get("/health").status_code == 503
    rig.registry.close()


def test_g67_a_drain_waits_for_uploads_on_their_way(tmp_path: Path) -> None:
    """A form and an upload's end that are being judged, and a piece of which a part is there."""
    judging = Event()

    def reader(config: bytes, weights: Path, shape: BaseShape) -> Checkpoint:
        assert judging.wait(20)
        return read(config, weights, shape)

    rig = make_rig(tmp_path, reader=reader)
    life, config, weights = rig.services.lifecycle, adapter_config(), adapter_weights()
    with serve(rig.app) as live, live.client() as http, connected(live) as piece, ThreadPoolExecutor(2) as pool:
        whole, half = (begin(http, config, weights, name=name) for name in ("whole", "half"))
        assert rest(http, whole, weights).status_code == 202
        head = f"PATCH {half} HTTP/1.1\r\nhost: x\r\nupload-offset: 0\r\ncontent-length: {len(weights)}\r\n\r\n"
        piece.sendall(head.encode() + weights[:100])
        judged = [
            pool.submit(http.post, "/v1/adapters", data={"name": "form"}, files=form(1)),
            pool.submit(finish, http, whole, weights),
        ]
        eventually(lambda: life.in_flight == 3)
        life.drain()
        assert not live.call(life.until_idle(0))
        judging.set()
        piece.sendall(weights[100:])
        assert [each.result().status_code for each in judged] == [201, 201] and read_reply(piece).status_code == 202
        assert live.call(life.until_idle(20))
    rig.registry.close()


def test_a_full_disk_is_told_by_every_route_that_writes(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    with serve(rig.app) as live, live.client() as client:
        client.post("/v1/adapters", data={"name": "full"}, files=form())
        with rig.registry._database.reading() as session:  # a database that may not grow stands in for the disk
            pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar()
            session.connection().exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        replies = (client.put(f"/v1/adapters/full/aliases/alias-{n}", json={"version": 1}) for n in range(500))
        refused = next(reply for reply in replies if reply.is_error)
        assert refused.status_code == 507 and refused.json()["error"]["code"] == "storage_full"
        check(refused)
    rig.registry.close()


def test_errors_are_counted_by_their_code(tmp_path: Path) -> None:
    """Also the one that a stream tells after its status has gone out, and the one that is our bug."""
    rig = make_rig(tmp_path, FakeWorker(fail_after=1, room=1))

    def count(code: str) -> float:
        return rig.services.metrics.registry.get_sample_value("rootstock_errors_total", {"code": code}) or 0

    body = {"model": BASE, "prompt": "x", "max_tokens": 3}
    with serve(rig.app) as live, live.client() as client:
        assert client.post("/v1/completions", json=body | {"model": "nobody"}).status_code == 404
        assert client.post("/v1/completions", json=body | {"n": 2}).status_code == 429
        assert client.post("/v1/completions", json=body | {"stream": True}).status_code == 200
        assert client.get("/nowhere").status_code == 404
    rig.registry.close()
    counts = {code: count(code) for code in ("model_not_found", "queue_full", "non_finite_logits", "route_not_found")}
    assert counts == dict.fromkeys(counts, 1)
