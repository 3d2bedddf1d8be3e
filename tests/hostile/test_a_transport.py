"""Cases 1 to 14: what is wrong with an upload before its content is: its form, its length, its pace, its order."""

import contextlib
import gzip
import hashlib
import io
import os
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.uploads import UploadLimits
from server.ports import Limits
from tests.support.adapters import adapters, write_adapter
from tests.support.door import SHAPE, Door
from tests.support.face import Face, adapter_config, make_face
from tests.support.face import write_adapter as write_tiny
from tests.support.http import LiveServer, eventually, serve
from tests.support.invariants import Invariants, check_reply
from tests.support.surroundings import targets

UPLOADS = "/v1/adapters/uploads"
Parts = dict[str, Any]


def parts(good: Path) -> Parts:
    config, weights = (good / "adapter_config.json").read_bytes(), (good / "adapter_model.safetensors").read_bytes()
    return {"config": ("adapter_config.json", config), "weights": ("adapter_model.safetensors", weights)}


def begin(http: httpx.Client, config: bytes, weights: bytes, **more: Any) -> str:
    order = {"name": "hostile", "config": config.decode(), "size": len(weights)} | more
    reply = http.post(UPLOADS, json=order)
    assert reply.status_code == 201, reply.text
    at: str = reply.headers["location"]
    return at


def finish(http: httpx.Client, at: str, weights: bytes, **headers: str) -> httpx.Response:
    return http.put(at, params={"digest": f"sha256:{hashlib.sha256(weights).hexdigest()}"}, headers=headers)


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def zipped(*entries: tuple[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return held.getvalue()


PATHS = ["../../evil", "/etc/evil", "ABSOLUTE/evil", "C:\\evil", "a/../../evil", "a\0evil"]


@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_a01_no_archive_is_opened_and_no_file_name_is_a_path(door: Door, good: Path, path: str) -> None:
    path = path.replace("ABSOLUTE", str(door.face.folder.parent))  # where whoever runs the tests may write
    archive = door.post(parts(good)["config"][1], zipped((path, b"evil")))
    assert "zip archive" in door.refused(archive, 415, "unsupported_media")
    named = parts(good) | {"weights": ("NAME", parts(good)["weights"][1])}
    form = door.http.build_request("POST", "/v1/adapters", data={"name": "named"}, files=named)
    body = form.read().replace(b"NAME", path.encode(), 1)  # httpx would spell a NUL as %00
    reply = door.http.post("/v1/adapters", content=body, headers={"content-type": form.headers["content-type"]})
    assert reply.status_code in (200, 201), "its own name for the file is not looked at"
    door.invariants.check(reply, sent="evil")
    assert [place for place in targets(path, door.face.folder) if os.path.lexists(place)] == [], "I3"


def test_a02_a_bomb_is_an_archive_like_any_other(door: Door, good: Path) -> None:
    """A thousand times its size, in a zip and in gzip; a bomb of bombs; and one content that is listed a hundred times.

    Nothing is unpacked: what is refused is the file as it came.
    """
    flat = zipped(("adapter_model.safetensors", bytes(10 << 20)))
    assert len(flat) * 900 < 10 << 20
    nested = zipped(*((f"{number}.zip", flat) for number in range(10)))
    for bomb in (flat, gzip.compress(bytes(10 << 20)), nested, overlapping()):
        door.refused(door.post(parts(good)["config"][1], bomb), 415, "unsupported_media")


def overlapping() -> bytes:
    """A zip whose entries all have their bytes in one place."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter_model.safetensors", bytes(1 << 20))
        archive.filelist *= 100
    with zipfile.ZipFile(held) as archive:
        assert {entry.header_offset for entry in archive.infolist()} == {0} and len(archive.infolist()) == 100
    return held.getvalue()


def test_a03_links_and_devices_are_never_made(door: Door, good: Path) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo("adapter_model.safetensors")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    door.refused(door.post(parts(good)["config"][1], held.getvalue()))


@pytest.mark.parametrize("again", ["weights", "Weights", "config", "name"])
def test_a04_a_part_that_comes_twice(door: Door, good: Path, again: str) -> None:
    form = [("name", (None, b"hostile")), *parts(good).items(), (again, ("x", b"x"))]
    reply = door.http.post("/v1/adapters", files=form)
    door.refused(reply, 422, "form_invalid")
    door.invariants.check(reply)


@pytest.mark.parametrize("name", ["code.py", "pytorch_model.bin", "x.pkl", "tokenizer_config.json"])
def test_a05_other_files_are_refused_by_name(door: Door, good: Path, name: str) -> None:
    extra = parts(good) | {name: (name, b"import os")}
    reply = door.http.post("/v1/adapters", data={"name": "hostile"}, files=extra)
    door.refused(reply, 422, "form_invalid")
    assert reply.json()["error"]["param"] == name
    door.invariants.check(reply, sent="import os")


def test_a06_a_pickle_is_told_how_to_become_safetensors(door: Door, good: Path) -> None:
    named = parts(good) | {"weights": ("adapter_model.bin", b"\x80\x02}q\x00.")}
    reply = door.http.post("/v1/adapters", data={"name": "hostile"}, files=named)
    assert "safetensors.torch.save_file" in door.refused(reply, 415, "unsupported_media")
    door.invariants.check(reply)


FORMS = {
    "no files": ({"name": "x"}, (), 415),
    "no weights": ({"name": "x"}, ("config",), 400),
    "no name": ({}, ("config", "weights"), 400),
    "huge name": ({"name": "x" * 5000}, ("config", "weights"), 413),
}


@pytest.mark.parametrize("case", FORMS)
def test_a06_forms_that_lack_something(door: Door, good: Path, case: str) -> None:
    fields, kept, status = FORMS[case]
    files = {name: part for name, part in parts(good).items() if name in kept}
    reply = door.http.post("/v1/adapters", data=fields, files=files or None)
    assert reply.status_code == status, reply.text
    door.invariants.check(reply)


@pytest.fixture
def narrow_face(tmp_path: Path) -> Iterator[Face]:
    """It takes 2000 bytes at most, and waits half a second."""
    limits = Limits(4096, max_upload_bytes=2000, idle_s=0.5)
    face = make_face(tmp_path / "server", limits=limits, uploads=UploadLimits(4, 6000))
    yield face
    face.registry.close()


@pytest.fixture
def narrow(narrow_face: Face) -> Iterator[LiveServer]:
    with serve(narrow_face.app) as live:
        yield live


def test_a07_too_much_is_413_before_it_is_read(narrow: LiveServer) -> None:
    with narrow.client() as http:
        files = {"config": ("c", adapter_config()), "weights": ("w", b"x" * 5000)}
        request = http.build_request("POST", "/v1/adapters", data={"name": "x"}, files=files)
        body, kind = request.read(), {"content-type": request.headers["content-type"]}
        replies = [
            http.post("/v1/adapters", content=body, headers=kind),
            http.post("/v1/adapters", content=iter([body[:3000], body[3000:]]), headers=kind),
            http.post(UPLOADS, json={"name": "x", "config": "{}", "size": 2001}),
        ]
        at = begin(http, adapter_config(), b"x" * 2000)
        replies.append(http.patch(at, content=b"x" * 2001, headers={"upload-offset": "0"}))
        replies.append(http.patch(at, content=iter([b"x" * 1500] * 2), headers={"upload-offset": "0"}))
    for reply in replies:
        assert code(reply) == (413, "body_too_large")
        check_reply(reply)
    declared = f"PATCH {at} HTTP/1.1\r\nhost: x\r\nupload-offset: 0\r\ncontent-length: 999999999\r\n\r\n"
    with talking(narrow) as client:
        client.sendall(declared.encode())
        assert client.recv(12) == b"HTTP/1.1 413", "not a byte of it was sent"


@contextlib.contextmanager
def talking(live: LiveServer) -> Iterator[socket.socket]:
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        yield client


def test_a08_a_form_cut_at_each_tenth_leaves_nothing(door: Door, good: Path) -> None:
    request = door.http.build_request("POST", "/v1/adapters", data={"name": "hostile"}, files=parts(good))
    body, kind = request.read(), request.headers["content-type"]
    before = given_up(door.http)
    for tenth in range(1, 10):
        cut = body[: len(body) * tenth // 10]
        reply = door.http.post("/v1/adapters", content=cut, headers={"content-type": kind})
        door.refused(reply, 400, "form_invalid")
        head = f"POST /v1/adapters HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        with talking(door.live) as client:
            client.sendall(head.encode() + cut)
    eventually(lambda: given_up(door.http) == before + 9)  # a request is counted once it has cleaned up
    assert door.http.get("/v1/adapters/hostile").status_code == 404
    door.invariants.check()


def given_up(http: httpx.Client) -> int:
    """How many forms ended because their client had gone."""
    counted = 'rootstock_http_requests_total{method="POST",route="/v1/adapters",status="499"} '
    lines = http.get("/metrics").text.splitlines()
    return sum(int(float(line.removeprefix(counted))) for line in lines if line.startswith(counted))


def test_a08_an_upload_cut_at_each_tenth_goes_on(door: Door, tmp_path: Path) -> None:
    files = parts(write_adapter(tmp_path, SHAPE, seed=8))
    config, weights = files["config"][1], files["weights"][1]
    at, tenth = begin(door.http, config, weights, name="tenths"), len(weights) // 10
    for cut in range(1, 10):
        there = offset(door.http, at)
        head = f"PATCH {at} HTTP/1.1\r\nhost: x\r\nupload-offset: {there}\r\ncontent-length: {len(weights) - there}"
        with talking(door.live) as client:
            client.sendall(f"{head}\r\n\r\n".encode() + weights[there : cut * tenth])
    eventually(lambda: rest(door.http, at, weights).status_code == 202)
    done = finish(door.http, at, weights)
    assert done.status_code == 201
    door.invariants.check(done)


def offset(http: httpx.Client, at: str) -> int:
    return int(http.head(at).headers["upload-offset"])


def rest(http: httpx.Client, at: str, weights: bytes) -> httpx.Response:
    there = offset(http, at)
    return http.patch(at, content=weights[there:], headers={"upload-offset": str(there)})


def test_a09_another_digest_than_the_contents(door: Door, good: Path) -> None:
    config, weights = parts(good)["config"][1], parts(good)["weights"][1]
    at = begin(door.http, config, weights)
    rest(door.http, at, weights)
    reply = finish(door.http, at, weights + b"x")
    door.refused(reply, 400, "digest_mismatch")
    assert door.http.get(at).json()["state"] == "failed"
    door.invariants.check(reply)


def test_a10_out_of_order_and_overlapping_chunks(door: Door, good: Path) -> None:
    config, weights = parts(good)["config"][1], parts(good)["weights"][1]
    at = begin(door.http, config, weights)
    door.http.patch(at, content=weights[:100], headers={"upload-offset": "0"})
    for place in ("0-9", "50-59", "99-108", "101-110"):
        reply = door.http.patch(at, content=weights[100:110], headers={"content-range": place})
        assert code(reply) == (416, "offset_invalid") and reply.headers["upload-offset"] == "100"
        door.invariants.check(reply)
    assert offset(door.http, at) == 100
    door.http.delete(at)


@pytest.mark.parametrize("resumable", [True, False])
def test_a11_a_byte_now_and_then_is_408_and_nobody_else_waits(
    narrow: LiveServer, narrow_face: Face, tmp_path: Path, resumable: bool
) -> None:
    canary, _ = narrow_face.catalog.add_directory("canary", write_tiny(tmp_path / "canary"))
    with narrow.client() as http:
        invariants = Invariants(narrow_face, http, canary)
        head, body = f"PATCH {begin(http, adapter_config(), b'x' * 2000)} HTTP/1.1\r\nupload-offset: 0", ""
        if not resumable:
            head = "POST /v1/adapters HTTP/1.1\r\ncontent-type: multipart/form-data; boundary=x"
            body = '--x\r\nContent-Disposition: form-data; name="weights"; filename="w"\r\n\r\n'
        with talking(narrow) as client:
            client.sendall(f"{head}\r\nhost: x\r\ncontent-length: 1500\r\n\r\n{body}".encode())
            stop = threading.Event()
            dribbling = threading.Thread(target=dribble, args=(client, stop))
            dribbling.start()
            assert http.get("/v1/models").status_code == 200
            answer = client.recv(12)
            stop.set()
            dribbling.join()
        assert answer == b"HTTP/1.1 408"
        eventually(lambda: narrow_face.services.lifecycle.in_flight == 0)
        invariants.check()


def dribble(client: socket.socket, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.is_set():
            client.sendall(b"-")
            time.sleep(0.05)


def test_a12_the_same_bytes_twice_are_one_version_and_one_blob(door: Door, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, SHAPE, seed=12)
    first, again, other = door.upload(folder, "same"), door.upload(folder, "same"), door.upload(folder, "same-too")
    assert [reply.status_code for reply in (first, again, other)] == [201, 200, 201]
    assert len({reply.json()["id"] for reply in (first, again, other)}) == 1
    assert again.json()["version"] == 1


def test_a13_fifty_at_once_are_fifty_versions(door: Door, tmp_path: Path) -> None:
    whole = []
    for folder in adapters(tmp_path, SHAPE, 50):
        files = parts(folder)
        at = begin(door.http, files["config"][1], files["weights"][1], name="fifty")
        assert rest(door.http, at, files["weights"][1]).status_code == 202
        whole.append((at, files["weights"][1]))
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda one: finish(door.http, *one), whole))
    assert {reply.status_code for reply in replies} == {201}
    assert sorted(reply.json()["version"] for reply in replies) == list(range(1, 51))
    versions = door.http.get("/v1/adapters/fifty/versions").json()["data"]
    assert [card["version"] for card in versions] == list(range(1, 51))
    assert len({card["id"] for card in versions}) == 50
    door.invariants.check()


def test_a13_of_those_that_saw_the_same_version_one_wins(door: Door, tmp_path: Path) -> None:
    folders = list(adapters(tmp_path, SHAPE, 9))
    seen = door.upload(folders[0], "contested").headers["etag"]

    def push(folder: Path) -> httpx.Response:
        headers = {"if-match": seen}
        return door.http.post("/v1/adapters", data={"name": "contested"}, files=parts(folder), headers=headers)

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(push, folders[1:]))
    assert sorted(reply.status_code for reply in replies) == [201] + [412] * 7
    door.invariants.check(*replies)


def test_a14_compressed_bodies_are_never_unpacked(door: Door, good: Path) -> None:
    bomb, headers = gzip.compress(bytes(10 << 20)), {"content-encoding": "gzip"}
    form = {"content-type": "multipart/form-data; boundary=x"}
    at = begin(door.http, *(part[1] for part in parts(good).values()))
    replies = [
        door.http.post("/v1/adapters", content=bomb, headers=headers | form),
        door.http.patch(at, content=bomb, headers=headers | {"upload-offset": "0"}),
        door.http.post(UPLOADS, content=bomb, headers=headers | {"content-type": "application/json"}),
    ]
    assert [reply.status_code for reply in replies] == [415] * 3
    assert offset(door.http, at) == 0
    door.invariants.check(*replies)
