"""G70: what labels do not say of a name comes back too when a lost registry is made again, and never more than that."""

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from adapters.dossier import Dossier, DossierUnreadable, decode, encode
from adapters.dossier_files import DOSSIER_FOLDER, path_of
from adapters.recovery import Rebuilt, rebuild
from adapters.sharing import EVERYBODY
from adapters.store import BlobStore
from tests.support.disks import FaultyDisk, fail
from tests.support.server_rig import form, make_rig
from tests.support.storage import CHANGES, Storage, furnish


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("furnished") / "data"
    furnish(root)
    return root


@pytest.fixture
def root(furnished: Path, tmp_path: Path) -> Path:
    shutil.copytree(furnished, tmp_path / "data")
    return tmp_path / "data"


def lose(root: Path) -> Rebuilt:
    """The registry is lost, and made again."""
    for path in root.glob("registry.sqlite*"):
        path.unlink()
    return rebuild(root / "registry.sqlite", BlobStore(root / "blobs"))


def known(root: Path) -> dict[str, Dossier]:
    with closing(Storage(root)) as storage:
        return storage.registry.dossiers()


def dossier(root: Path, name: str) -> Path:
    return path_of(root / "blobs" / DOSSIER_FOLDER, name)


def test_g70_grants_pins_canaries_scores_and_history_come_back(root: Path) -> None:
    before = known(root)
    assert all(any(one.kept[table] for one in before.values()) for table in next(iter(before.values())).kept)
    rebuilt = lose(root)
    assert known(root) == before
    with closing(Storage(root)) as storage:
        storage.check()
        assert storage.catalog.shares.tenants_of("pirate") == {"acme", "other"}
        assert storage.catalog.shares.tenants_of("sql") == {EVERYBODY}
        assert [version.name for version in storage.catalog.pinned()] == ["sql"]
        assert storage.catalog.roll_back("pirate", "next").number == 1, "the history is one to go back on"
    assert set(rebuilt.again) == {
        "pirate: shared with acme",
        "pirate: shared with other",
        "pirate: tried gives version 2 25% of its traffic",
        "pirate: 4 moves of its aliases",
        "sql: shared with everybody",
        "sql: pinned",
        "sql: 1 eval files",
        "sql: 1 scores",
    }
    assert rebuilt.lost == ()


def test_g70_the_numbers_of_deleted_versions_are_not_given_again(root: Path) -> None:
    lose(root)
    with closing(Storage(root)) as storage:
        storage.add("gone", 8)
        assert storage.catalog.resolve("gone").number == 3
        assert storage.catalog.shares.tenants_of("gone") == frozenset()


ENDS: dict[str, Callable[[Dossier], bool]] = {
    "unshare": lambda dossier: any(share["tenant"] == "acme" for share in dossier.kept["grants"]),
    "delete": lambda dossier: dossier.name == "pirate" and bool(dossier.kept["grants"]),
    "end a canary": lambda dossier: bool(dossier.kept["canaries"]),
    "unpin": lambda dossier: dossier.name == "sql" and dossier.kept["names"][0]["pinned"],
}
"""Changes that take something away, and whether a dossier still has it."""


@pytest.mark.parametrize("lasting", [False, True], ids=["one failure", "a disk that stays full"])
@pytest.mark.parametrize("change", ENDS)
def test_g70_what_was_taken_away_stays_so_once_it_was_said(
    furnished: Path, tmp_path: Path, change: str, lasting: bool
) -> None:
    there = ENDS[change]
    assert any(map(there, known(furnished).values()))
    answers = set()
    for at in count():
        shutil.copytree(furnished, root := tmp_path / "data")
        disk = FaultyDisk(fail(errno.ENOSPC), at, lasting=lasting)
        with closing(Storage(root, disk)) as storage:
            try:
                CHANGES[change](storage)
                acknowledged = True
            except OSError:
                acknowledged = False
            done = len(disk.calls) <= at
        lose(root)
        kept = any(map(there, known(root).values()))
        assert not (acknowledged and kept), f"it came back: {disk.calls}, failed at {at}"
        answers.add((acknowledged, kept))
        shutil.rmtree(root)
        if done:
            break
    assert {(True, False), (False, True)} <= answers


def test_g70_a_grant_that_failed_never_comes_to_be(furnished: Path, tmp_path: Path) -> None:
    for at in count():
        shutil.copytree(furnished, root := tmp_path / "data")
        disk = FaultyDisk(fail(errno.EIO), at, lasting=True)
        with closing(Storage(root, disk)) as storage:
            try:
                CHANGES["share"](storage)
                acknowledged = True
            except OSError:
                acknowledged = False
        lose(root)
        shared = {share["tenant"] for share in known(root)["sql"].kept["grants"]}
        assert shared <= {EVERYBODY, "new"} and (acknowledged or "new" not in shared)
        shutil.rmtree(root)
        if len(disk.calls) <= at:
            break
    assert at > 3


def test_g70_a_start_mends_a_dossier_that_a_crash_kept_behind(root: Path) -> None:
    old = dossier(root, "pirate").read_bytes()
    with closing(Storage(root)) as storage:
        storage.catalog.unshare("pirate", "acme")
        dossier(root, "pirate").write_bytes(old)
        dossier(root, "sql").unlink()
        dossier(root, "nobody").write_bytes(encode(Dossier("nobody", {}, {}, {})))
        (root / "blobs" / DOSSIER_FOLDER / ".half").write_bytes(b"{")
        storage.check()
    lose(root)
    assert {share["tenant"] for share in known(root)["pirate"].kept["grants"]} == {"other"}


def newer(content: bytes) -> bytes:
    return json.dumps(json.loads(content) | {"format": 2}).encode()


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "damaged": lambda content: content.replace(b"acme", b"evil"),
    "cut short": lambda content: content[:-5],
    "empty": lambda content: b"",
    "newer": newer,
    "other words": lambda content: encode(replace(decode(content), kept={"names": [{"name": "pirate"}]})),
    "another's": lambda content: encode(replace(decode(content), name="sql")),
}


@pytest.mark.parametrize("case", SPOILT)
def test_g70_a_dossier_that_cannot_be_believed_gives_nothing_and_is_told(root: Path, case: str) -> None:
    path = dossier(root, "pirate")
    path.write_bytes(SPOILT[case](path.read_bytes()))
    rebuilt = lose(root)
    assert [what for what in rebuilt.lost if what.startswith("pirate: what else was known of it")], rebuilt.lost
    after = known(root)
    assert not after["pirate"].kept["grants"] and not after["pirate"].kept["canaries"]
    assert set(after["pirate"].versions) == {"1", "2"}, "its versions are the labels'"
    assert {share["tenant"] for share in after["sql"].kept["grants"]} == {EVERYBODY}


def test_g70_a_dossier_of_other_versions_gives_nothing(root: Path) -> None:
    path = dossier(root, "pirate")
    path.write_bytes(encode(replace(decode(path.read_bytes()), versions={"1": f"sha256:{1:064x}"})))
    rebuilt = lose(root)
    assert "pirate: what else was known of it, as its dossier speaks of other versions" in rebuilt.lost
    assert not any(known(root)["pirate"].kept[table] for table in ("grants", "canaries", "scores"))


def test_g70_a_canary_of_an_alias_that_has_moved_since_is_not_tried_again(root: Path) -> None:
    old = dossier(root, "pirate").read_bytes()
    with closing(Storage(root)) as storage:
        storage.catalog.set_alias("pirate", "tried", 2)
    dossier(root, "pirate").write_bytes(old)
    rebuilt = lose(root)
    assert "pirate: the canary of its alias tried, which has moved since" in rebuilt.lost
    assert not known(root)["pirate"].kept["canaries"]


def test_a_dossier_says_what_it_was_told(root: Path) -> None:
    for one in known(root).values():
        assert decode(encode(one)) == one
    with pytest.raises(DossierUnreadable, match="damaged"):
        decode(b"[]")


def test_g70_a_client_is_not_told_of_an_end_that_may_not_last(tmp_path: Path) -> None:
    disk = FaultyDisk(fail(errno.ENOSPC), lasting=True)
    rig = make_rig(tmp_path, disk=disk)
    http = TestClient(rig.app)
    assert http.post("/v1/adapters", data={"name": "mine"}, files=form(1)).status_code == 201
    assert http.put("/v1/adapters/mine/shares/acme").is_success
    disk.arm(1)
    assert http.delete("/v1/adapters/mine/shares/acme").status_code == 503
    disk.arm(None)
    assert http.delete("/v1/adapters/mine/shares/acme").is_success
    rig.registry.close()
