"""Resumable uploads over HTTP: the flow, its refusals, and what outlives a cut connection and a restart."""

import contextlib
import hashlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.errors import UnknownUpload, UploadsFull
from adapters.upload_files import UploadSpec
from adapters.uploads import UploadLimits, Uploads
from server.ports import Limits
from tests.http.test_tenants import visible
from tests.support.http import LiveServer, eventually, serve
from tests.support.keys import guarded_rig, headers_of
from tests.support.reply_checks import check_after
from tests.support.server_rig import BASE, ServerRig, adapter_config, adapter_weights, form, make_rig

ROUTE = "/v1/adapters/uploads"


def order(weights: bytes, name: str = "up", **changes: Any) -> dict[str, Any]:
    return {"name": name, "config": adapter_config().decode(), "size": len(weights)} | changes


def sha256(weights: bytes) -> str:
    return f"sha256:{hashlib.sha256(weights).hexdigest()}"


def begun(http: httpx.Client, weights: bytes, **changes: Any) -> str:
    reply = http.post(ROUTE, json=order(weights, **changes))
    assert reply.status_code == 201, reply.text
    return reply.headers["location"]


def send(http: httpx.Client, at: str, data: bytes, offset: int) -> httpx.Response:
    return http.patch(at, content=data, headers={"upload-offset": str(offset)})


def finish(http: httpx.Client, at: str, weights: bytes, **headers: str) -> httpx.Response:
    return http.put(at, params={"digest": sha256(weights)}, headers=headers)


def offset(http: httpx.Client, at: str) -> int:
    return int(http.head(at).headers["upload-offset"])


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def test_the_whole_flow(http: httpx.Client, rig: ServerRig) -> None:
    weights = adapter_weights(300)
    at = begun(http, weights, name="flow", alias="prod")
    first = send(http, at, weights[:100], 0)
    assert (first.status_code, first.headers["upload-offset"], first.headers["range"]) == (202, "100", "0-99")
    ranged = http.patch(at, content=weights[100:200], headers={"content-range": "100-199"})
    assert (ranged.status_code, ranged.json()["offset"]) == (202, 200)
    assert http.head(at).headers["upload-offset"] == "200"
    assert http.get(at).json()["state"] == "pending"
    assert code(finish(http, at, weights)) == (409, "upload_incomplete")
    assert send(http, at, weights[200:], 200).status_code == 202
    done = finish(http, at, weights)
    assert (done.status_code, done.json()["aliases"], done.headers["etag"]) == (201, ["prod"], '"1"')
    shown = http.get(at).json()
    assert (shown["state"], shown["offset"], shown["version"]) == ("ready", len(weights), 1)
    assert code(send(http, at, b"x", len(weights))) == code(finish(http, at, weights)) == (409, "upload_over")
    again = begun(http, weights, name="flow")
    send(http, again, weights, 0)
    assert finish(http, again, weights).status_code == 200
    assert not list(rig.services.form_dir.glob("resumable/*/weights"))


def test_the_same_order_goes_on_where_it_was(http: httpx.Client) -> None:
    """So a reply that was lost, or a client that was killed, leaves no second upload behind."""
    weights = adapter_weights(301)
    at = begun(http, weights, name="again", digest=sha256(weights))
    send(http, at, weights[:50], 0)
    again = http.post(ROUTE, json=order(weights, "again", digest=sha256(weights)))
    assert (again.status_code, again.headers["location"], again.headers["upload-offset"]) == (200, at, "50")
    other = http.post(ROUTE, json=order(weights, "again", digest=sha256(b"other")))
    assert other.status_code == 201 and other.headers["location"] != at


def test_a_cut_connection_keeps_what_arrived(live: LiveServer, http: httpx.Client) -> None:
    weights = random.Random(1).randbytes(3 << 20)
    at = begun(http, weights, name="cut")
    host, port = live.url.removeprefix("http://").split(":")
    head = f"PATCH {at} HTTP/1.1\r\nhost: x\r\nupload-offset: 0\r\ncontent-length: {len(weights)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + weights[: 2 << 20])
        eventually(lambda: offset(http, at) >= 1 << 20)
    eventually(lambda: send(http, at, weights[offset(http, at) :], offset(http, at)).status_code == 202)
    assert code(finish(http, at, weights)) == (422, "invalid_adapter"), "the digest was that of the whole"


EVAL = '{"prompt": "a", "completion": " b"}\n'


def test_an_eval_file_comes_with_the_order(http: httpx.Client, rig: ServerRig) -> None:
    weights = adapter_weights(310)
    at = begun(http, weights, name="measured", eval=EVAL, digest=sha256(weights))
    other = order(weights, "measured", eval=EVAL * 2, digest=sha256(weights))
    assert http.post(ROUTE, json=other).status_code == 201, "with other rows it is another upload"
    send(http, at, weights, 0)
    assert finish(http, at, weights).status_code == 201
    assert http.get("/v1/adapters/measured@1/eval").text == EVAL
    assert not (rig.services.form_dir / "resumable" / at.rpartition("/")[2] / "eval").exists()


def test_an_eval_file_that_is_wrong_is_told_before_a_byte_is_sent(http: httpx.Client) -> None:
    before = http.get(ROUTE).json()["data"]
    refused = http.post(ROUTE, json=order(adapter_weights(311), "unmeasured", eval="{}"))
    assert code(refused) == (422, "invalid_eval")
    assert code(http.post(ROUTE, json=order(b"x", eval="x" * (257 << 10)))) == (400, "validation_error")
    assert code(http.post(ROUTE, json=order(b"x", eval="\u00e9" * (200 << 10)))) == (413, "body_too_large")
    assert http.get(ROUTE).json()["data"] == before


def test_failures_are_remembered_with_their_reason(http: httpx.Client, rig: ServerRig) -> None:
    weights = adapter_weights(303)[:-8]
    at = begun(http, weights, name="bad")
    send(http, at, weights, 0)
    refused = finish(http, at, weights)
    assert code(refused) == (422, "invalid_adapter") and refused.json()["error"]["faults"]
    shown = http.get(at).json()
    assert shown["state"] == "failed" and "adapter_model.safetensors" in shown["reason"]
    assert not (rig.services.form_dir / "resumable" / shown["id"] / "weights").exists()
    assert http.get("/v1/adapters/bad").status_code == 404


def test_a_condition_that_fails_leaves_the_upload_as_it_was(http: httpx.Client) -> None:
    weights = adapter_weights(304)
    at = begun(http, weights, name="conditional")
    send(http, at, weights, 0)
    assert code(finish(http, at, weights, **{"if-match": "*"})) == (412, "precondition_failed")
    assert finish(http, at, weights, **{"if-none-match": "*"}).status_code == 201


def test_orders_that_are_refused_before_a_byte_is_sent(http: httpx.Client) -> None:
    weights = adapter_weights()
    for changes, expected in (
        ({"size": 0}, (400, "validation_error")),
        ({"size": 1 << 50}, (413, "body_too_large")),
        ({"name": "../x"}, (400, "name_invalid")),
        ({"name": BASE}, (409, "name_reserved")),
        ({"name": "uploads"}, (409, "name_reserved")),
        ({"alias": "7"}, (400, "alias_invalid")),
        ({"digest": "sha256:../.."}, (400, "validation_error")),
        ({"tenant": "other"}, (400, "validation_error")),
    ):
        assert code(http.post(ROUTE, json=order(weights) | changes)) == expected
    assert code(http.post(ROUTE, content=b"{", headers={"content-type": "application/json"})) == (400, "json_invalid")


def test_headers_that_say_no_place(http: httpx.Client) -> None:
    at = begun(http, adapter_weights(), name="place")
    for headers in (
        {}, {"upload-offset": "-1"}, {"upload-offset": "0", "content-range": "0-0"}, {"content-range": "5-1"},
        {"content-range": "bytes 0-9/10"},
    ):  # fmt: skip
        assert code(http.patch(at, content=b"x", headers=headers)) == (400, "offset_missing")
    for digest in ("", "sha256:../../etc", "md5:0"):
        assert http.put(at, params={"digest": digest}).status_code == 400
    assert http.put(at).status_code == 400


def test_cancelling(http: httpx.Client, rig: ServerRig) -> None:
    at = begun(http, adapter_weights(), name="cancelled")
    listed = [upload["id"] for upload in http.get(ROUTE).json()["data"]]
    assert at.rpartition("/")[2] in listed
    assert http.delete(at).json()["deleted"]
    for reply in (http.get(at), http.delete(at), send(http, at, b"x", 0), finish(http, at, b"x")):
        assert code(reply) == (404, "upload_not_found")
    assert not (rig.services.form_dir / "resumable" / at.rpartition("/")[2]).exists()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[ServerRig, httpx.Client]]:
    """A server with narrow limits: two uploads of 3000 bytes together, and half a second of patience."""
    limits = Limits(4096, max_upload_bytes=2000, idle_s=0.5)
    rig = make_rig(tmp_path, limits=limits, uploads=UploadLimits(most_open=2, most_bytes=3000))
    with serve(rig.app) as live, live.client() as client:
        yield rig, client
    rig.registry.close()


def test_quotas_hold_before_bytes_are_read(small: tuple[ServerRig, httpx.Client]) -> None:
    _, http = small
    first = begun(http, b"x" * 2000)
    refused = http.post(ROUTE, json=order(b"x" * 1001))
    assert code(refused) == (429, "too_many_uploads") and refused.headers["retry-after"]
    begun(http, b"x" * 1000)
    assert code(http.post(ROUTE, json=order(b"x"))) == (429, "too_many_uploads")
    http.delete(first)
    begun(http, b"x" * 100)


def test_more_bytes_than_declared_are_413(small: tuple[ServerRig, httpx.Client]) -> None:
    _, http = small
    at = begun(http, b"x" * 100)
    assert code(send(http, at, b"x" * 101, 0)) == (413, "body_too_large")
    chunked = http.patch(at, content=iter([b"x" * 60] * 2), headers={"upload-offset": "0"})
    assert code(chunked) == (413, "body_too_large")
    assert offset(http, at) <= 100


def test_all_tenants_together_have_so_many(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "alone", UploadLimits(most_open=2, most_in_all=3))
    first, _ = uploads.begin(UploadSpec("a", "x", None, b"{}", 5))
    for tenant in ("a", "b"):
        uploads.begin(UploadSpec(tenant, "y", None, b"{}", 5))
    with pytest.raises(UploadsFull):
        uploads.begin(UploadSpec("c", "x", None, b"{}", 5))
    uploads.cancel("a", first.id)
    uploads.begin(UploadSpec("c", "x", None, b"{}", 5))
    rig = make_rig(tmp_path, uploads=UploadLimits(most_in_all=1))
    with serve(rig.app) as live, live.client() as http:
        begun(http, b"x" * 10)
        refused = http.post(ROUTE, json=order(b"x" * 20))
        assert code(refused) == (503, "uploads_full") and refused.headers["retry-after"]
    rig.registry.close()


def test_room_on_disk_is_promised_once(tmp_path: Path) -> None:
    """What open uploads have yet to bring counts as used; what they brought has left the free bytes already."""
    free = [100]
    rig = make_rig(tmp_path, free_bytes=lambda: free[0])
    with serve(rig.app) as live, live.client() as http:
        at = begun(http, b"x" * 60)
        refused = http.post(ROUTE, json=order(b"x" * 41))
        assert code(refused) == (507, "storage_full") and refused.headers["x-should-retry"] == "false"
        send(http, at, b"x" * 60, 0)
        free[0] = 41
        begun(http, b"x" * 41)
        assert code(http.post(ROUTE, json=order(b"x"))) == (507, "storage_full")
        assert len(http.get(ROUTE).json()["data"]) == 2, "a refused order leaves nothing"
    rig.registry.close()


def test_a_form_on_its_way_takes_its_tenants_room_and_is_promised_its_own(tmp_path: Path) -> None:
    """A form may be slow: its tenant cannot promise itself the room of all the others."""
    free = [1 << 20]
    limits = Limits(4096, idle_s=60)
    rig = make_rig(tmp_path, limits=limits, uploads=UploadLimits(most_bytes=5000), free_bytes=lambda: free[0])
    uploads = rig.services.uploads
    with serve(rig.app) as live, live.client() as http:

        def post() -> int:
            return http.post("/v1/adapters", data={"name": "form"}, files=form(320)).status_code

        host, port = live.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            head = "POST /v1/adapters HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
            slow.sendall(f"{head}content-length: 4500\r\n\r\n--x\r\n".encode())
            eventually(lambda: uploads._reservations)  # whoever comes first has the room
            assert post() == 429
            assert code(http.post(ROUTE, json=order(b"x" * 600))) == (429, "too_many_uploads")
            with uploads.reserve("other", 600):
                pass
            free[0] = 5000
            with pytest.raises(OSError, match="no room"), uploads.reserve("other", 600):
                pass
        eventually(lambda: post() in (200, 201))
    rig.registry.close()


def test_what_expired_while_the_server_was_down_goes_at_its_start(tmp_path: Path) -> None:
    clock = [1000.0]
    uploads = Uploads(tmp_path, UploadLimits(age_s=10), lambda: clock[0])
    old, _ = uploads.begin(UploadSpec("a", "old", None, b"{}", 5))
    clock[0] += 8
    young, _ = uploads.begin(UploadSpec("a", "young", None, b"{}", 5))
    clock[0] += 3
    Uploads(tmp_path, UploadLimits(age_s=10), lambda: clock[0])
    assert [folder.name for folder in tmp_path.iterdir()] == [young.id]


def test_a_server_that_comes_back_knows_its_uploads(tmp_path: Path) -> None:
    weights = adapter_weights(305)
    rig = make_rig(tmp_path)
    with serve(rig.app) as live, live.client() as http:
        at = begun(http, weights, name="survivor")
        send(http, at, weights[:77], 0)
    rig.registry.close()
    (tmp_path / "uploads" / "resumable" / "half-made").mkdir()
    back = make_rig(tmp_path)
    with serve(back.app) as live, live.client() as http:
        assert http.head(at).headers["upload-offset"] == "77"
        send(http, at, weights[77:], 77)
        assert finish(http, at, weights).status_code == 201
    back.registry.close()
    assert not (tmp_path / "uploads" / "resumable" / "half-made").exists()


def test_old_uploads_are_forgotten_and_other_tenants_see_nothing(tmp_path: Path) -> None:
    clock = [1000.0]
    uploads = Uploads(tmp_path, UploadLimits(age_s=10), lambda: clock[0])
    session, _ = uploads.begin(UploadSpec("a", "x", None, b"{}", 5))
    with pytest.raises(UnknownUpload):
        uploads.find("b", session.id)
    assert uploads.for_tenant("b") == [] and uploads.find("a", session.id) == (session, 0)
    clock[0] += 11
    with pytest.raises(UnknownUpload):
        uploads.find("a", session.id)
    assert uploads.for_tenant("a") == [] and list(tmp_path.iterdir()), "what only asks removes nothing"
    assert uploads.collect() == 1 and list(tmp_path.iterdir()) == []


def test_h76_anothers_upload_is_an_absent_one(tmp_path: Path) -> None:
    """Begun, half there and whole; and who announces the same bytes begins an upload of its own."""
    weights = adapter_weights(33)
    digest = sha256(weights)
    with guarded_rig(tmp_path) as (rig, store), serve(rig.app) as live, contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(live.client(**headers_of(store, tenant))) for tenant in ("acme", "beta"))
        at = begun(a, weights, digest=digest)
        for piece in (weights[:0], weights[:50], weights[50:]):
            assert send(a, at, piece, offset(a, at)).status_code == 202
            hidden, absent = asked(b, at, weights), asked(b, f"{ROUTE}/{'0' * 32}", weights)
            assert [visible(reply) for reply in hidden] == [visible(reply) for reply in absent]
            assert {reply.status_code for reply in hidden} == {404}
        assert b.get(ROUTE).json()["data"] == []
        own = begun(b, weights, digest=digest)
        assert own != at and offset(b, own) == 0 and b.delete(own).status_code == 200
        assert finish(a, at, weights).status_code == 201, "and nothing was changed"
        check_after(b, rig)


def asked(http: httpx.Client, at: str, weights: bytes) -> list[httpx.Response]:
    """Every way to ask for an upload, or to go on with it."""
    pieces = (send(http, at, b"x", there) for there in (0, 50))
    return [http.get(at), http.head(at), *pieces, finish(http, at, weights), http.delete(at)]
