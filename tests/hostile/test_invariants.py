"""What is asserted after every case, held against servers that break it: what cannot fail shows nothing."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from adapters.errors import AdapterCorrupt
from tests.support.broken_apps import Parrot, Scribbling, Unmannered
from tests.support.invariants import MARK, Invariants, check_held, check_reply
from tests.support.server_rig import BASE, ServerRig, form, make_rig, served, write_adapter
from tests.support.surroundings import at_home, targets


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ServerRig]:
    with at_home(tmp_path):
        made = make_rig(tmp_path / "server")
        yield made
    made.registry.close()


def client(app: ASGIApp) -> Any:
    """A client as every test has one, of the library's next version, and without a socket."""
    return TestClient(app)


@pytest.fixture
def invariants(rig: ServerRig, tmp_path: Path) -> Invariants:
    canary, _ = rig.catalog.add_directory("canary", write_adapter(tmp_path / "canary"))
    rig.catalog.add_directory("other", write_adapter(tmp_path / "other", seed=1))
    kept = Invariants(rig, client(rig.app), canary)
    kept.check()
    return kept


PATHS = [("../../evil", "."), ("../evil", "."), ("evil", "."), ("ROOT/evil", "."), ("evil", "SERVER/uploads")]


@pytest.mark.parametrize(("path", "folder"), [*PATHS, ("evil", "SERVER")])
def test_a_file_name_that_is_taken_for_a_path_is_found(
    path: str, folder: str, rig: ServerRig, invariants: Invariants, tmp_path: Path
) -> None:
    path = path.replace("ROOT", str(tmp_path))
    http = client(Scribbling(rig.app, Path(folder.replace("SERVER", str(rig.folder)))))
    files = form(2) | {"weights": (path, form(2)["weights"][1], "application/octet-stream")}
    reply = http.post("/v1/adapters", data={"name": "named"}, files=files)
    assert reply.status_code == 201, reply.text
    with pytest.raises(AssertionError, match="I3"):
        invariants.check(reply)
    assert any(os.path.lexists(place) for place in targets(path, rig.folder))


def another_base(rig: ServerRig) -> None:
    rig.catalog.base = served(weights=f"sha256:{8:064x}")


def canary_rewritten(rig: ServerRig) -> None:
    for weights in rig.folder.rglob("adapter_model.safetensors"):
        weights.chmod(0o600)
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")


def canary_moved(rig: ServerRig) -> None:
    rig.catalog.set_alias("canary", "prod", 1)


def temporary_left(rig: ServerRig) -> None:
    (rig.folder / "data" / "blobs" / "tmp" / "left").mkdir()


BREAKAGES: Mapping[str, tuple[Callable[[ServerRig], object], str]] = {
    "I1": (another_base, "I1"),
    "I2, its bytes": (canary_rewritten, "corrupt|damaged|digest"),
    "I2, its version": (canary_moved, "I2"),
    "I3, a directory": (temporary_left, "I3"),
    "I3, a file": (lambda rig: (rig.folder / "uploads" / "left.tmp").touch(), "I3"),
    "I3, a link": (lambda rig: (rig.folder / "data" / "blobs" / "sha256" / "ab").symlink_to("/etc"), "I3"),
    "I3, a device's like": (lambda rig: os.mkfifo(rig.folder / "uploads" / "pipe"), "I3"),
    "I3, written over": (lambda rig: (rig.folder.parent / "canary" / "README.md").touch(), "I3"),
    "I6": (lambda rig: rig.registry.delete("other"), "I6"),
}


@pytest.mark.parametrize("case", BREAKAGES)
def test_what_is_no_longer_as_it_was_is_found(case: str, rig: ServerRig, invariants: Invariants) -> None:
    breaks, message = BREAKAGES[case]
    breaks(rig)
    with pytest.raises((AssertionError, AdapterCorrupt), match=message):
        invariants.check()


def test_an_adapter_that_stays_held_is_found(rig: ServerRig, invariants: Invariants) -> None:
    with rig.catalog.lease("canary"), pytest.raises(AssertionError, match="in time"):
        check_held(rig, within_s=0.05)
    invariants.check()


def test_an_answer_that_stays_counted_is_found(rig: ServerRig, invariants: Invariants) -> None:
    with rig.services.lifecycle.answering(), pytest.raises(AssertionError, match="in time"):
        check_held(rig, within_s=0.05)
    invariants.check()


@pytest.mark.parametrize("broken", [Parrot, Unmannered])
def test_an_error_that_repeats_what_was_sent_is_found(broken: Callable[[ASGIApp], ASGIApp], rig: ServerRig) -> None:
    body = {"model": BASE, "prompt": MARK, "max_tokens": 0}
    check_reply(client(rig.app).post("/v1/completions", json=body), MARK)
    reply = client(broken(rig.app)).post("/v1/completions", json=body)
    with pytest.raises((AssertionError, KeyError), match="I7|error"):
        check_reply(reply, MARK)
