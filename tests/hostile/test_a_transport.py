"""Cases 1 to 7 and 14: what is wrong with an upload before its content is: its form, its names, its length."""

import gzip
import io
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checked_server import CheckedServer
from tests.support.http import LiveServer
from tests.support.invariants import Invariants
from tests.support.server_rig import ServerRig, adapter_config, write_adapter
from tests.support.surroundings import targets
from tests.support.upload_steps import (
    UPLOADS,
    begin,
    code,
    config_of,
    connected,
    in_pieces,
    offset,
    parts,
    read_reply,
    rest,
    weights_of,
)


def zipped(*entries: tuple[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return held.getvalue()


PATHS = ["../../evil", "/etc/evil", "ABSOLUTE/evil", "C:\\evil", "a/../../evil", "a\0evil"]


@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_a01_no_archive_is_opened_and_no_file_name_is_a_path(checked: CheckedServer, good: Path, path: str) -> None:
    path = path.replace("ABSOLUTE", str(checked.rig.folder.parent))  # where whoever runs the tests may write
    archive = checked.post(config_of(good), zipped((path, b"evil")))
    assert "zip archive" in checked.refused(archive, 415, "unsupported_media")
    named = parts(good) | {"weights": ("NAME", weights_of(good))}
    form = checked.http.build_request("POST", "/v1/adapters", data={"name": "named"}, files=named)
    body = form.read().replace(b"NAME", path.encode(), 1)  # httpx would spell a NUL as %00
    reply = checked.http.post("/v1/adapters", content=body, headers={"content-type": form.headers["content-type"]})
    assert reply.status_code in (200, 201), "its own name for the file is not looked at"
    checked.invariants.check(reply, sent="evil")
    assert [place for place in targets(path, checked.rig.folder) if os.path.lexists(place)] == [], "I3"


def test_a02_a_bomb_is_an_archive_like_any_other(checked: CheckedServer, good: Path) -> None:
    """A thousand times its size, in a zip and in gzip; a bomb of bombs; and one content that is listed a hundred times.

    Nothing is unpacked: what is refused is the file as it came.
    """
    flat = zipped(("adapter_model.safetensors", bytes(10 << 20)))
    assert len(flat) * 900 < 10 << 20
    nested = zipped(*((f"{number}.zip", flat) for number in range(10)))
    for bomb in (flat, gzip.compress(bytes(10 << 20)), nested, overlapping()):
        checked.refused(checked.post(config_of(good), bomb), 415, "unsupported_media")


def overlapping() -> bytes:
    """A zip whose entries all have their bytes in one place."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter_model.safetensors", bytes(1 << 20))
        archive.filelist *= 100
    with zipfile.ZipFile(held) as archive:
        assert {entry.header_offset for entry in archive.infolist()} == {0} and len(archive.infolist()) == 100
    return held.getvalue()


LINKS = {
    "symlink": (tarfile.SYMTYPE, stat.S_IFLNK),
    "hardlink": (tarfile.LNKTYPE, stat.S_IFREG),
    "character device": (tarfile.CHRTYPE, stat.S_IFCHR),
    "block device": (tarfile.BLKTYPE, stat.S_IFBLK),
    "pipe": (tarfile.FIFOTYPE, stat.S_IFIFO),
    "directory": (tarfile.DIRTYPE, stat.S_IFDIR),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a03_links_and_devices_are_never_made(checked: CheckedServer, good: Path, kind: str) -> None:
    in_tar, in_zip = LINKS[kind]
    held, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        member = tarfile.TarInfo("adapter_model.safetensors")
        member.type, member.linkname = in_tar, "/etc/passwd"
        archive.addfile(member)
    with zipfile.ZipFile(packed, "w") as archive:
        entry = zipfile.ZipInfo("adapter_model.safetensors")
        entry.create_system, entry.external_attr = 3, (in_zip | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    checked.refused(checked.post(config_of(good), held.getvalue()))
    checked.refused(checked.post(config_of(good), packed.getvalue()), 415, "unsupported_media")
    checked.refused(in_pieces(checked.http, config_of(good), held.getvalue()))
    checked.invariants.check()


@pytest.mark.parametrize("again", ["weights", "config", "name", "alias", "eval", "Weights", "CONFIG", "Name"])
def test_a04_a_part_that_comes_twice(checked: CheckedServer, good: Path, again: str) -> None:
    files = [*parts(good).items(), ("alias", (None, b"prod")), ("eval", ("eval.jsonl", b"{}"))]
    form = [("name", (None, b"hostile")), *files, (again, ("x", b"x"))]
    reply = checked.http.post("/v1/adapters", files=form)
    message = checked.refused(reply, 422, "form_invalid")
    assert reply.json()["error"]["param"] == again
    assert ("twice. Send it once." if again.islower() else "It takes the fields `name`") in message
    checked.invariants.check(reply)


@pytest.mark.parametrize(
    "name", ["code.py", "pytorch_model.bin", "adapter_model.bin", "x.pkl", "tokenizer_config.json"]
)
def test_a05_other_files_are_refused_by_name(checked: CheckedServer, good: Path, name: str) -> None:
    extra = parts(good) | {name: (name, b"import os")}
    reply = checked.http.post("/v1/adapters", data={"name": "hostile"}, files=extra)
    assert f"`{name}`" in checked.refused(reply, 422, "form_invalid")
    assert reply.json()["error"]["param"] == name
    checked.invariants.check(reply, sent="import os")


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self._sentinel = sentinel

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._sentinel),)


@pytest.mark.parametrize("name", ["adapter_model.bin", "x.pt", "X.PTH", "x.pkl", "x.ckpt", "adapter_model.safetensors"])
def test_a06_a_pickle_is_told_how_to_become_safetensors(
    checked: CheckedServer, good: Path, tmp_path: Path, name: str
) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "sentinel"), protocol=2)
    pickle.loads(bomb)
    (tmp_path / "sentinel").rmdir()
    torch_file = zipped(("archive/data.pkl", bomb), ("archive/version", b"3"))
    for content in (bomb, torch_file):
        named = parts(good) | {"weights": (name, content)}
        reply = checked.http.post("/v1/adapters", data={"name": "hostile"}, files=named)
        expected = "safe_serialization=True" if name.endswith("safetensors") else "safetensors.torch.save_file"
        assert expected in checked.refused(reply, 415, "unsupported_media")
        checked.invariants.check(reply)
        pieces = in_pieces(checked.http, config_of(good), content)
        assert "safe_serialization=True" in checked.refused(pieces, 415, "unsupported_media")
    assert not (tmp_path / "sentinel").exists()


FORMS = {
    "no files": ({"name": "x"}, (), (415, "unsupported_media"), None),
    "no weights": ({"name": "x"}, ("config",), (400, "form_invalid"), "weights"),
    "no config": ({"name": "x"}, ("weights",), (400, "form_invalid"), "config"),
    "no name": ({}, ("config", "weights"), (400, "form_invalid"), "name"),
    "huge name": ({"name": "x" * 5000}, ("config", "weights"), (413, "body_too_large"), "name"),
}


@pytest.mark.parametrize("case", FORMS)
def test_a06_forms_that_lack_something(checked: CheckedServer, good: Path, case: str) -> None:
    fields, kept, expected, param = FORMS[case]
    files = {name: part for name, part in parts(good).items() if name in kept}
    reply = checked.http.post("/v1/adapters", data=fields, files=files or None)
    assert code(reply) == expected and reply.json()["error"]["param"] == param
    checked.invariants.check(reply)


@pytest.fixture
def narrowly(narrow: LiveServer, narrow_rig: ServerRig, tmp_path: Path) -> Iterator[Invariants]:
    """What must hold of the narrow server."""
    canary, _ = narrow_rig.catalog.add_directory("canary", write_adapter(tmp_path / "canary"))
    with narrow.client() as http:
        yield Invariants(narrow_rig, http, canary)


def test_a07_too_much_is_413(narrow: LiveServer, narrowly: Invariants) -> None:
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
        assert reply.json()["error"]["message"].startswith(("The request body is larger", "This upload was declared"))
    narrowly.check(*replies)


def test_a07_what_is_declared_is_413_before_it_is_read(narrow: LiveServer, narrowly: Invariants) -> None:
    """Not a byte of it was sent."""
    with narrow.client() as http:
        at = begin(http, adapter_config(), b"x" * 2000)
    form, json = "content-type: multipart/form-data; boundary=x", "content-type: application/json"
    for head in (f"POST /v1/adapters HTTP/1.1\r\n{form}", f"PATCH {at} HTTP/1.1\r\nupload-offset: 0"):
        with connected(narrow) as client:
            client.sendall(f"{head}\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n".encode())
            reply = read_reply(client)
        assert code(reply) == (413, "body_too_large")
        narrowly.check(reply)
    with connected(narrow) as client:
        client.sendall(f"POST {UPLOADS} HTTP/1.1\r\n{json}\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n".encode())
        assert code(read_reply(client)) == (413, "body_too_large")


@pytest.mark.parametrize("where", ["before", "after", "head"])
def test_a07_what_is_no_part_counts_too(narrow: LiveServer, narrowly: Invariants, where: str) -> None:
    """Three megabytes before the first boundary, behind the last one, or in a part's head."""
    junk, line = b"x" * (3 << 20), b'Content-Disposition: form-data; name="name"\r\n\r\nx\r\n'
    bodies = {
        "before": junk + b"--x\r\n" + line,
        "after": b"--x\r\n" + line + b"--x--\r\n" + junk,
        "head": b"--x\r\nX-Odd: " + junk + b"\r\n" + line,
    }
    kind = {"content-type": "multipart/form-data; boundary=x"}
    with narrow.client() as http:
        reply = http.post("/v1/adapters", content=iter([bodies[where]]), headers=kind)
    assert code(reply) == ((413, "body_too_large") if where == "after" else (400, "form_invalid"))
    narrowly.check(reply)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "identity, gzip", "odd"])
def test_a14_compressed_bodies_are_never_unpacked(checked: CheckedServer, good: Path, encoding: str) -> None:
    bomb, headers = gzip.compress(bytes(10 << 20)), {"content-encoding": encoding}
    form = {"content-type": "multipart/form-data; boundary=x"}
    at = begin(checked.http, config_of(good), weights_of(good))
    replies = [
        checked.http.post("/v1/adapters", content=bomb, headers=headers | form),
        checked.http.patch(at, content=bomb, headers=headers | {"upload-offset": "0"}),
        checked.http.post(UPLOADS, content=bomb, headers=headers | {"content-type": "application/json"}),
    ]
    assert [code(reply) for reply in replies] == [(415, "unsupported_media")] * 3
    assert offset(checked.http, at) == 0
    assert rest(checked.http, at, weights_of(good)).status_code == 202
    checked.http.delete(at)
    checked.invariants.check(*replies)
