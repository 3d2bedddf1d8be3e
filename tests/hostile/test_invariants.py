"""What is asserted after every case, held against servers that break it: what cannot fail shows nothing."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from adapters.errors import AdapterCorrupt
from tests.support.broken_faces import Parrot, Scribbling, Unmannered
from tests.support.face import BASE, Face, form, make_face, served, write_adapter
from tests.support.invariants import MARK, Invariants, check_held, check_reply
from tests.support.surroundings import at_home, targets


@pytest.fixture
def face(tmp_path: Path) -> Iterator[Face]:
    with at_home(tmp_path):
        made = make_face(tmp_path / "server")
        yield made
    made.registry.close()


def client(app: ASGIApp) -> Any:
    """A client as every test has one, of the library's next version, and without a socket."""
    return TestClient(app)


@pytest.fixture
def invariants(face: Face, tmp_path: Path) -> Invariants:
    canary, _ = face.catalog.add_directory("canary", write_adapter(tmp_path / "canary"))
    face.catalog.add_directory("other", write_adapter(tmp_path / "other", seed=1))
    kept = Invariants(face, client(face.app), canary)
    kept.check()
    return kept


PATHS = [("../../evil", "."), ("../evil", "."), ("evil", "."), ("ROOT/evil", "."), ("evil", "SERVER/uploads")]


@pytest.mark.parametrize(("path", "folder"), [*PATHS, ("evil", "SERVER")])
def test_a_file_name_that_is_taken_for_a_path_is_found(
    path: str, folder: str, face: Face, invariants: Invariants, tmp_path: Path
) -> None:
    path = path.replace("ROOT", str(tmp_path))
    http = client(Scribbling(face.app, Path(folder.replace("SERVER", str(face.folder)))))
    files = form(2) | {"weights": (path, form(2)["weights"][1], "application/octet-stream")}
    reply = http.post("/v1/adapters", data={"name": "named"}, files=files)
    assert reply.status_code == 201, reply.text
    with pytest.raises(AssertionError, match="I3"):
        invariants.check(reply)
    assert any(os.path.lexists(place) for place in targets(path, face.folder))


def another_base(face: Face) -> None:
    face.catalog.base = served(weights=f"sha256:{8:064x}")


def canary_rewritten(face: Face) -> None:
    for weights in face.folder.rglob("adapter_model.safetensors"):
        weights.chmod(0o600)
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")


def canary_moved(face: Face) -> None:
    face.catalog.set_alias("canary", "prod", 1)


def temporary_left(face: Face) -> None:
    (face.folder / "data" / "blobs" / "tmp" / "left").mkdir()


BREAKAGES: Mapping[str, tuple[Callable[[Face], object], str]] = {
    "I1": (another_base, "I1"),
    "I2, its bytes": (canary_rewritten, "corrupt|damaged|digest"),
    "I2, its version": (canary_moved, "I2"),
    "I3, a directory": (temporary_left, "I3"),
    "I3, a file": (lambda face: (face.folder / "uploads" / "left.tmp").touch(), "I3"),
    "I3, a link": (lambda face: (face.folder / "data" / "blobs" / "sha256" / "ab").symlink_to("/etc"), "I3"),
    "I3, a device's like": (lambda face: os.mkfifo(face.folder / "uploads" / "pipe"), "I3"),
    "I3, written over": (lambda face: (face.folder.parent / "canary" / "README.md").touch(), "I3"),
    "I6": (lambda face: face.registry.delete("other"), "I6"),
}


@pytest.mark.parametrize("case", BREAKAGES)
def test_what_is_no_longer_as_it_was_is_found(case: str, face: Face, invariants: Invariants) -> None:
    breaks, told = BREAKAGES[case]
    breaks(face)
    with pytest.raises((AssertionError, AdapterCorrupt), match=told):
        invariants.check()


def test_an_adapter_that_stays_held_is_found(face: Face, invariants: Invariants) -> None:
    with face.catalog.lease("canary"), pytest.raises(AssertionError, match="in time"):
        check_held(face, within_s=0.05)
    invariants.check()


def test_an_answer_that_stays_counted_is_found(face: Face, invariants: Invariants) -> None:
    with face.services.lifecycle.answering(), pytest.raises(AssertionError, match="in time"):
        check_held(face, within_s=0.05)
    invariants.check()


@pytest.mark.parametrize("broken", [Parrot, Unmannered])
def test_an_error_that_repeats_what_was_sent_is_found(broken: Callable[[ASGIApp], ASGIApp], face: Face) -> None:
    body = {"model": BASE, "prompt": MARK, "max_tokens": 0}
    check_reply(client(face.app).post("/v1/completions", json=body), MARK)
    reply = client(broken(face.app)).post("/v1/completions", json=body)
    with pytest.raises((AssertionError, KeyError), match="I7|error"):
        check_reply(reply, MARK)
