"""Cases 8 to 13: uploads that are cut off, lie, come out of order, dribble, come twice, or come all at once."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.adapters import adapters, write_adapter
from tests.support.broken_configs import C36, REGEX
from tests.support.broken_files import B18, B21, FOREIGN
from tests.support.checked_server import SHAPE, CheckedServer
from tests.support.http import LiveServer, eventually
from tests.support.invariants import Invariants, check_reply
from tests.support.server_rig import ServerRig, adapter_config
from tests.support.server_rig import write_adapter as write_tiny
from tests.support.upload_steps import (
    UPLOADS,
    begin,
    code,
    config_of,
    connected,
    finish,
    in_pieces,
    offset,
    parts,
    read_reply,
    rest,
    sha256,
    weights_of,
)


def test_a08_a_form_cut_at_each_tenth_leaves_nothing(checked: CheckedServer, good: Path) -> None:
    request = checked.http.build_request("POST", "/v1/adapters", data={"name": "hostile"}, files=parts(good))
    body, kind = request.read(), request.headers["content-type"]
    before = given_up(checked.http)
    for tenth in range(1, 10):
        cut = body[: len(body) * tenth // 10]
        reply = checked.http.post("/v1/adapters", content=cut, headers={"content-type": kind})
        checked.refused(reply, 400, "form_invalid")
        head = f"POST /v1/adapters HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        with connected(checked.live) as client:
            client.sendall(head.encode() + cut)
    eventually(lambda: given_up(checked.http) == before + 9)  # a request is counted once it has cleaned up
    assert checked.http.get("/v1/adapters/hostile").status_code == 404
    checked.invariants.check()


def given_up(http: httpx.Client) -> int:
    """How many forms ended because their client had gone."""
    counted = 'rootstock_http_requests_total{method="POST",route="/v1/adapters",status="499"} '
    lines = http.get("/metrics").text.splitlines()
    return sum(int(float(line.removeprefix(counted))) for line in lines if line.startswith(counted))


def test_a08_an_upload_cut_at_each_tenth_goes_on(checked: CheckedServer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, SHAPE, seed=8)
    config, weights = config_of(folder), weights_of(folder)
    at, tenth = begin(checked.http, config, weights, name="tenths"), len(weights) // 10
    for cut in range(1, 10):
        there = offset(checked.http, at)
        head = f"PATCH {at} HTTP/1.1\r\nhost: x\r\nupload-offset: {there}\r\ncontent-length: {len(weights) - there}"
        with connected(checked.live) as client:
            client.sendall(f"{head}\r\n\r\n".encode() + weights[there : cut * tenth])
            time.sleep(0.02)  # what the server has not read when the connection ends is lost
        eventually(lambda: not checked.rig.services.uploads._busy)
        assert there <= offset(checked.http, at) <= cut * tenth
        assert checked.http.get("/v1/adapters/tenths").status_code == 404
    assert offset(checked.http, at), "of what arrived, nothing was kept"
    eventually(lambda: rest(checked.http, at, weights).status_code == 202)
    done = finish(checked.http, at, weights)
    assert done.status_code == 201
    checked.invariants.check(done)


def test_a08_an_upload_that_nobody_goes_on_with_is_collected(brief: ServerRig, brief_http: httpx.Client) -> None:
    at = begin(brief_http, adapter_config(), b"x" * 100)
    brief_http.patch(at, content=b"x" * 50, headers={"upload-offset": "0"})
    assert offset(brief_http, at) == 50
    eventually(lambda: brief_http.get(at).status_code == 404)
    assert code(rest_of(brief_http, at)) == (404, "upload_not_found")
    assert brief_http.get(UPLOADS).json()["data"] == []
    assert brief.services.uploads.collect() == 1, "the server calls it every few seconds"
    assert list((brief.folder / "uploads" / "resumable").iterdir()) == []


def rest_of(http: httpx.Client, at: str) -> httpx.Response:
    return http.patch(at, content=b"x" * 50, headers={"upload-offset": "50"})


def test_a09_another_digest_than_the_contents(checked: CheckedServer, good: Path) -> None:
    config, weights = config_of(good), weights_of(good)
    at = begin(checked.http, config, weights)
    rest(checked.http, at, weights)
    reply = finish(checked.http, at, weights + b"x")
    checked.refused(reply, 400, "digest_mismatch")
    assert checked.http.get(at).json()["state"] == "failed"
    checked.invariants.check(reply)


def test_a09_another_digest_than_was_declared_at_the_beginning(checked: CheckedServer, good: Path) -> None:
    config, weights = config_of(good), weights_of(good)
    at = begin(checked.http, config, weights, digest=sha256(b"another file"))
    rest(checked.http, at, weights)
    reply = finish(checked.http, at, weights)
    checked.refused(reply, 400, "digest_mismatch")
    checked.invariants.check(reply)


@pytest.mark.parametrize("digest", ["", "sha256:../../etc", "md5:0", "sha256:" + "A" * 64, sha256(b"") + "/.."])
def test_a09_what_is_no_digest(checked: CheckedServer, good: Path, digest: str) -> None:
    order = {"name": "hostile", "config": config_of(good).decode(), "size": 1, "digest": digest}
    begun = checked.http.post(UPLOADS, json=order)
    at = begin(checked.http, config_of(good), b"x")
    replies = begun, checked.http.put(at, params={"digest": digest})
    checked.http.delete(at)
    assert [reply.status_code for reply in replies] == [400, 400]
    checked.invariants.check(*replies, sent="../")


PLACES = [
    *({"content-range": place} for place in ("0-9", "50-59", "99-108", "101-110")),
    *({"upload-offset": place} for place in ("0", "50", "99", "101", "9" * 18)),
]


def test_a10_out_of_order_and_overlapping_chunks(checked: CheckedServer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, SHAPE, seed=10)
    config, weights = config_of(folder), weights_of(folder)
    at = begin(checked.http, config, weights, name="ordered")
    checked.http.patch(at, content=weights[:100], headers={"upload-offset": "0"})
    for place in PLACES:
        reply = checked.http.patch(at, content=b"x" * 10, headers=place)
        assert code(reply) == (416, "offset_invalid") and reply.headers["upload-offset"] == "100"
        checked.invariants.check(reply)
    assert offset(checked.http, at) == 100
    rest(checked.http, at, weights)
    assert finish(checked.http, at, weights).status_code == 201, "not a byte of them was written"


@pytest.mark.parametrize("resumable", [True, False])
def test_a11_a_byte_now_and_then_is_408_and_nobody_else_waits(
    narrow: LiveServer, narrow_rig: ServerRig, tmp_path: Path, resumable: bool
) -> None:
    canary, _ = narrow_rig.catalog.add_directory("canary", write_tiny(tmp_path / "canary"))
    others = write_tiny(tmp_path / "other", seed=11)
    with narrow.client() as http:
        invariants = Invariants(narrow_rig, http, canary)
        head, body = f"PATCH {begin(http, adapter_config(), b'x' * 2000)} HTTP/1.1\r\nupload-offset: 0", ""
        if not resumable:
            head = "POST /v1/adapters HTTP/1.1\r\ncontent-type: multipart/form-data; boundary=x"
            body = '--x\r\nContent-Disposition: form-data; name="weights"; filename="w"\r\n\r\n'
        with connected(narrow) as client:
            client.sendall(f"{head}\r\nhost: x\r\ncontent-length: 1500\r\n\r\n{body}".encode())
            stop = threading.Event()
            dribbling = threading.Thread(target=dribble, args=(client, stop))
            dribbling.start()
            assert http.post("/v1/adapters", data={"name": "other"}, files=parts(others)).status_code == 201
            assert http.post("/v1/completions", json={"model": "other", "prompt": "x"}).status_code == 200
            assert narrow_rig.services.lifecycle.in_flight == 1, "it is at it still"
            answer = read_reply(client)
            stop.set()
            dribbling.join()
        assert code(answer) == (408, "body_timeout")
        assert answer.headers["connection"] == "close", "or it dribbles on for as long as it likes"
        check_reply(answer)
        eventually(lambda: narrow_rig.services.lifecycle.in_flight == 0)
        invariants.check()


def dribble(client: socket.socket, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.is_set():
            client.sendall(b"-")
            time.sleep(0.05)


def test_a12_the_same_bytes_twice_are_one_version_and_one_blob(checked: CheckedServer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, SHAPE, seed=12)
    first, again, other = (
        checked.upload(folder, "same"),
        checked.upload(folder, "same"),
        checked.upload(folder, "same-too"),
    )
    third = in_pieces(checked.http, config_of(folder), weights_of(folder), "same")
    replies = (first, again, other, third)
    assert [reply.status_code for reply in replies] == [201, 200, 201, 200]
    (id,) = {reply.json()["id"] for reply in replies}
    assert again.json()["version"] == third.json()["version"] == 1
    assert blobs(checked, id) == 1
    checked.invariants.check(third)


def test_a12_the_same_bytes_at_once_are_one_version_and_one_blob(checked: CheckedServer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, SHAPE, seed=120)

    def push(_: int) -> httpx.Response:
        return checked.http.post("/v1/adapters", data={"name": "at-once"}, files=parts(folder))

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(push, range(8)))
    assert sorted(reply.status_code for reply in replies) == [200] * 7 + [201]
    ((id, number),) = {(reply.json()["id"], reply.json()["version"]) for reply in replies}
    assert number == 1 and blobs(checked, id) == 1
    checked.invariants.check(*replies)


def blobs(checked: CheckedServer, id: str) -> int:
    """How many places of the disk hold an adapter's weights, wherever they are."""
    weights = checked.rig.store.open(checked.rig.catalog.with_content(id)[0].id).weights.read_bytes()  # type: ignore[arg-type]
    return sum(path.read_bytes() == weights for path in checked.rig.folder.rglob("*") if path.is_file())


def test_a13_fifty_at_once_are_fifty_versions(checked: CheckedServer, tmp_path: Path) -> None:
    whole = []
    for folder in adapters(tmp_path, SHAPE, 50):
        weights = weights_of(folder)
        at = begin(checked.http, config_of(folder), weights, name="fifty")
        assert rest(checked.http, at, weights).status_code == 202
        whole.append((at, weights))
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda one: finish(checked.http, *one), whole))
    assert {reply.status_code for reply in replies} == {201}
    ids = {reply.json()["version"]: reply.json()["id"] for reply in replies}
    assert sorted(ids) == list(range(1, 51)) and len(set(ids.values())) == 50
    versions = checked.http.get("/v1/adapters/fifty/versions").json()["data"]
    assert {card["version"]: card["id"] for card in versions} == ids, "each is what its uploader was told"
    checked.invariants.check()


@pytest.mark.parametrize("pieces", [False, True])
def test_a13_of_those_that_saw_the_same_version_one_wins(checked: CheckedServer, tmp_path: Path, pieces: bool) -> None:
    name, folders = f"contested-{pieces}", list(adapters(tmp_path, SHAPE, 9))
    seen = {"if-match": checked.upload(folders[0], name).headers["etag"]}
    ways = [begin(checked.http, config_of(each), weights_of(each), name=name) for each in folders[1:] if pieces]

    def push(number: int) -> httpx.Response:
        folder = folders[1 + number]
        if not pieces:
            return checked.http.post("/v1/adapters", data={"name": name}, files=parts(folder), headers=seen)
        rest(checked.http, ways[number], weights_of(folder))
        return finish(checked.http, ways[number], weights_of(folder), **seen)

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(push, range(8)))
    assert sorted(reply.status_code for reply in replies) == [201] + [412] * 7
    lost = [reply for reply in replies if reply.status_code == 412]
    assert {reply.json()["error"]["code"] for reply in lost} == {"precondition_failed"}
    assert {reply.headers["x-should-retry"] for reply in lost} == {"false"}
    assert len(checked.http.get(f"/v1/adapters/{name}/versions").json()["data"]) == 2
    for way in ways:
        checked.http.delete(way)
    checked.invariants.check(*replies)


CONTENT = {
    "b18": (B18["duplicate"][0], "occurs twice"),
    "b27": (FOREIGN["lfs"][0], "git lfs pull"),
}
CONFIGS = {
    "c31": (f'{{"target_modules": "{REGEX}"}}'.encode(), "expected a list of names"),
    "c36": C36["duplicate"],
}


@pytest.mark.parametrize("case", [*CONTENT, *CONFIGS, "b21"])
def test_b21_what_comes_in_pieces_is_judged_as_a_form_is(
    checked: CheckedServer, good: Path, tmp_path: Path, case: str
) -> None:
    """One of each kind: both ways end at the same reader."""
    config, (weights, words) = config_of(good), CONTENT.get(case, (weights_of(good), ""))
    if case == "b21":
        change, (words, *_) = B21["other adapter"]
        weights = weights_of(write_adapter(tmp_path, SHAPE, change=change))
    config, words = CONFIGS.get(case, (config, words))
    reply = in_pieces(checked.http, config, weights)
    media = case == "b27"
    assert words in checked.refused(reply, *((415, "unsupported_media") if media else (422, "invalid_adapter")))
    checked.invariants.check(reply)
