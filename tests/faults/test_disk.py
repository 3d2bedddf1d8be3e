"""G69: a disk that is full, that fails, or a process without file descriptors: refused, told, and nothing changed."""

import errno
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.support.disks import FaultyDisk, fail
from tests.support.face import form, make_face
from tests.support.storage import CHANGES, Storage, furnish

NUMBERS = (errno.ENOSPC, errno.EIO, errno.EMFILE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    furnish(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("number", NUMBERS)
def test_g69_an_upload_is_whole_or_not_there_wherever_the_disk_fails(root: Path, number: int) -> None:
    disk = FaultyDisk(fail(number))
    failed = 0
    with closing(Storage(root, disk)) as storage:
        old = storage.facts()
        for at in count():
            disk.arm(at)
            try:
                CHANGES["upload"](storage)
            except OSError as error:
                assert error.errno == number and storage.facts() == old
                storage.check()
                failed += 1
                continue
            assert storage.catalog.resolve("new@prod").number == at - failed + 1, "numbers go on, without a gap"
            if len(disk.calls) <= at:
                break
            disk.arm(None)
            storage.catalog.delete("new")
            assert storage.facts() == old
    assert failed > 10


@pytest.mark.parametrize("change", ["move an alias", "delete", "note of an eviction"])
@pytest.mark.parametrize("number", NUMBERS)
def test_g69_a_change_that_fails_has_not_happened(root: Path, number: int, change: str) -> None:
    """It fails at its commit; what follows a commit may fail too, and is made good by the next start."""
    disk = FaultyDisk(fail(number))
    with closing(Storage(root, disk)) as storage:
        old = storage.facts()
        disk.arm(0)
        with pytest.raises(OSError, match=r"."):
            CHANGES[change](storage)
        assert storage.facts() == old
        disk.arm(1)
        CHANGES[change](storage)
    with closing(Storage(root)) as storage:
        storage.check()
        assert storage.facts() != old


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk(fail(errno.ENOSPC))


@pytest.fixture
def http(tmp_path: Path, disk: FaultyDisk) -> Iterator[TestClient]:
    face = make_face(tmp_path, disk=disk)
    yield TestClient(face.app)
    face.registry.close()


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(errno.ENOSPC, 507, "storage_full"), (errno.EIO, 503, "storage_failed"), (errno.EMFILE, 503, "storage_failed")],
)
def test_g69_the_client_is_told_and_reads_go_on(
    http: TestClient, disk: FaultyDisk, number: int, status: int, code: str
) -> None:
    assert http.post("/v1/adapters", data={"name": "there"}, files=form(1)).status_code == 201
    disk.happen = fail(number)
    for at in (0, 3):
        disk.arm(at)
        refused = http.post("/v1/adapters", data={"name": "new"}, files=form(2))
        assert refused.status_code == status and refused.json()["error"]["code"] == code
        assert "x-should-retry" in refused.headers or "retry-after" in refused.headers
    assert [card["name"] for card in http.get("/v1/adapters").json()["data"]] == ["there"]
    assert http.post("/v1/completions", json={"model": "there", "prompt": "x", "max_tokens": 2}).status_code == 200
    assert http.post("/v1/adapters", data={"name": "new"}, files=form(2)).status_code == 201
