"""G69: a disk that is full, that fails, or a process without file descriptors: refused, told, and nothing changed."""

import errno
import hashlib
import resource
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from adapters.errors import Unsettled
from adapters.upload_files import UploadSpec
from adapters.uploads import UploadLimits, Uploads
from server.usage.ledger import Ledger, UsageFilter
from server.usage.writer import LedgerWriter
from tests.support import http_uploads, server_records
from tests.support.disks import FaultyDisk, fail
from tests.support.http import eventually
from tests.support.invariants import check_disk
from tests.support.server_rig import form, make_rig
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
                if isinstance(error, Unsettled):
                    storage.check()  # until a start, bytes are kept for a name that it might find
                assert error.errno == number and storage.facts() == old
                storage.check()
                failed += 1
                continue
            assert storage.catalog.resolve("new@prod").number == at - failed + 1, "numbers go on, without a gap"
            if len(disk.calls) <= at:
                break
            disk.arm(None)
            storage.catalog.delete("new")
            assert storage.facts()[:3] == old[:3], "all but the number that the name has come to"
            old = storage.facts()
    assert failed > 10


@pytest.mark.parametrize("change", ["move an alias", "delete", "note of an eviction", "share", "unshare", "pin"])
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
    rig = make_rig(tmp_path, disk=disk)
    yield TestClient(rig.app)
    check_disk(rig)
    rig.registry.close()


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


@contextmanager
def full() -> Iterator[None]:
    """No file of this process may grow, which the system tells as it tells of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_g69_a_form_that_finds_no_room_while_it_arrives_is_told_and_leaves_nothing(http: TestClient) -> None:
    """It is put aside before anything is stored, and not by way of `Disk`."""
    with capture_logs(), full():
        refused = http.post("/v1/adapters", data={"name": "new"}, files=form(2))
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
    assert http.post("/v1/adapters", data={"name": "new"}, files=form(2)).status_code == 201


RECORD_CHANGES = {**server_records.CHANGES, **server_records.FIRST_CHANGES}


@pytest.mark.parametrize("change", RECORD_CHANGES)
def test_g69_uploads_keys_and_usage_are_as_before_or_as_asked_wherever_the_disk_fails(
    tmp_path: Path, change: str
) -> None:
    """After every failure the change is made again by whoever asked for it, and holds; nothing is made twice."""
    first = change in server_records.FIRST_CHANGES
    (server_records.furnish_barely if first else server_records.furnish)(tmp_path / "furnished")
    with closing(server_records.ServerRecords(tmp_path / "furnished")) as kept:
        old = kept.facts()
    wanted, failed = None, 0
    for at in count():
        number, root = NUMBERS[at % len(NUMBERS)], tmp_path / "data"
        disk = FaultyDisk(fail(number), at)
        shutil.copytree(tmp_path / "furnished", root)
        with closing(server_records.ServerRecords(root, disk)) as kept:
            try:
                RECORD_CHANGES[change](kept)
            except OSError as error:
                assert error.errno == number
                failed += 1
                disk.arm(None)
                if kept.facts() == old:
                    RECORD_CHANGES[change](kept)
            done = len(disk.calls) <= at
            disk.arm(None)
            kept.uploads.collect()  # as a periodic task of the server does; it notes what could not be noted
            wanted = kept.facts() if wanted is None else wanted
            assert kept.facts() == wanted != old
        with closing(server_records.ServerRecords(root)) as again:
            again.check()
            assert again.facts() == wanted, "it is on disk, not in memory only"
        shutil.rmtree(root)
        if done:
            break
    assert (failed > 0) == (change != "finish an upload"), "what was made of an upload stands, noted or not"


@pytest.mark.parametrize("change", http_uploads.CHANGES)
def test_g69_what_a_client_is_told_of_an_upload_with_its_eval_and_alias_is_so(tmp_path: Path, change: str) -> None:
    """Refused, nothing is there; answered with success, all of it, and still so after a restart. Asked again, it is
    made, or was made.
    """
    send, made = http_uploads.CHANGES[change], []
    http_uploads.furnish(tmp_path / "furnished")
    shutil.copytree(tmp_path / "furnished", tmp_path / "whole")
    with closing(http_uploads.HttpUploads(tmp_path / "whole")) as whole:
        old, answer, new = whole.facts(), send(whole).status, whole.facts()
    assert old != new and answer in (200, 201)
    for at in count():
        number, root = NUMBERS[at % len(NUMBERS)], tmp_path / "data"
        shutil.copytree(tmp_path / "furnished", root)
        disk = FaultyDisk(fail(number))
        with closing(http_uploads.HttpUploads(root, disk)) as tried, capture_logs():  # a traceback is slow to print
            disk.arm(at)
            status, calls = send(tried).status, len(disk.calls)
            disk.arm(None)
            made.append(status == answer)
            assert made[-1] or status == (507 if number == errno.ENOSPC else 503)
            assert tried.facts()[:2] == (new if made[-1] else old)[:2], (
                f"{status} at call {at}"
            )  # blobs: see test_unsettled
            assert made[-1] or send(tried).status == answer
        with closing(http_uploads.HttpUploads(root)) as again:
            again.check()
            over = again.upload()[1] == "ready"
            assert send(again).status == (409 if over else 200) and again.facts() == new
        shutil.rmtree(root)
        if calls <= at:
            break
    assert not made[0] and made == sorted(made) and made.count(True) > 3, "what follows the commit refuses nobody"


def test_g69_bytes_that_follow_a_failure_are_not_written(tmp_path: Path) -> None:
    """Half of a chunk is there: what came after it would be in the wrong place."""
    disk = FaultyDisk(fail(errno.ENOSPC), moment="halfway")
    uploads = Uploads(tmp_path, UploadLimits(), disk=disk)
    session, _ = uploads.begin(UploadSpec("", "x", None, b"{}", 300))
    disk.arm(1)
    with uploads.writing("", session.id, 0) as writer:
        for _ in range(2):
            with pytest.raises(OSError, match="space"):
                writer.write(b"a" * 100)
    disk.arm(None)
    assert uploads.find("", session.id)[1] == 50
    with uploads.writing("", session.id, 50) as writer:
        writer.write(b"b" * 250)
    assert (tmp_path / session.id / "weights").read_bytes() == b"a" * 50 + b"b" * 250


def test_g69_an_upload_goes_on_when_the_disk_has_room_again(http: TestClient, disk: FaultyDisk) -> None:
    files = form(7)
    config, weights = files["config"][1], files["weights"][1]
    order = {"name": "piecewise", "config": config.decode(), "size": len(weights)}
    disk.arm(0)
    assert http.post("/v1/adapters/uploads", json=order).status_code == 507
    assert http.get("/v1/adapters/uploads").json()["data"] == []
    disk.arm(None)
    at = http.post("/v1/adapters/uploads", json=order).headers["location"]
    disk.arm(1)
    refused = http.patch(at, content=weights, headers={"upload-offset": "0"})
    assert refused.status_code == 507 and http.head(at).headers["upload-offset"] == "0"
    disk.arm(None)
    assert http.patch(at, content=weights, headers={"upload-offset": "0"}).status_code == 202
    digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    for call in (0, 8):
        disk.arm(call)
        assert http.put(at, params={"digest": digest}).status_code == 507
        assert http.get(at).json()["state"] in ("pending", "validating")
    disk.arm(None)
    assert http.put(at, params={"digest": digest}).json()["version"] == 1


def test_g69_usage_waits_for_room_and_is_written_once(tmp_path: Path) -> None:
    disk = FaultyDisk(fail(errno.ENOSPC))
    ledger = Ledger(f"sqlite:///{tmp_path / 'usage.sqlite'}", disk)
    with closing(ledger), closing(LedgerWriter(ledger, retry_s=0.01)) as writer:
        disk.arm(0)
        writer.record(server_records.BEFORE)
        eventually(lambda: list(ledger.rows(UsageFilter())) == [server_records.BEFORE])
        assert disk.calls == ["commit", "commit"]
