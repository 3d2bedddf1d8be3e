"""G69: what a client was told stays true when the disk never works again. After a restart on one that does, what was
answered with success is there, what was refused is not, and of the rest it was said that nobody knows.

Each change is made on a disk whose first calls work and whose later ones all fail, for every number of first calls;
once more with the first failing call made all the same, as a sync may be that reports an error.
"""

import errno
import resource
import shutil
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from adapters.disk import Disk
from adapters.errors import Unsettled
from adapters.upload_files import UploadSpec
from adapters.uploads import UploadLimits, Uploads
from tests.support import http_uploads
from tests.support.disks import FaultyDisk, Moment, fail
from tests.support.storage import CHANGES, Storage, furnish

ASKED = ("upload a version and move its alias", "delete", "share", "unshare")
"""The others are made of the same steps: bytes, a commit, a label, and a dossier that may or must follow."""

REFUSED, UNKNOWN, MADE = range(3)
WORDS = {
    507: "The disk is full, so nothing was changed",
    503: "not known whether it did: look before you send it again",
}


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("furnished") / "data"
    furnish(root)
    return root


def names(root: Path, change: Callable[[Storage], None] | None = None) -> object:
    """After a start, and after `change` if there is one: all but the blobs, which follow the names."""
    with closing(Storage(root)) as storage:
        storage.check()
        if change is not None:
            change(storage)
        versions, residents, _, known = storage.facts()
    return versions, residents, known


def outcome_of(storage: Storage, change: Callable[[Storage], None]) -> int:
    try:
        change(storage)
    except Unsettled:
        return UNKNOWN
    except OSError:
        return REFUSED
    return MADE


@pytest.mark.parametrize(("number", "moment"), [(errno.ENOSPC, "before"), (errno.EIO, "after")])
@pytest.mark.parametrize("change", ASKED)
def test_g69_a_change_is_what_was_told_of_it_when_no_later_call_works(
    furnished: Path, tmp_path: Path, change: str, number: int, moment: Moment
) -> None:
    shutil.copytree(furnished, whole := tmp_path / "whole")
    old, new = names(whole), names(whole, CHANGES[change])
    answers: list[int] = []
    for at in count():
        shutil.copytree(furnished, root := tmp_path / "data")
        disk = FaultyDisk(fail(number), at, moment, lasting=True)
        with closing(Storage(root, disk)) as storage:
            answers.append(outcome_of(storage, CHANGES[change]))
        found = names(root)
        assert found in {REFUSED: [old], UNKNOWN: [old, new], MADE: [new]}[answers[-1]], f"{disk.calls}, {at} work"
        assert found == new or names(root, CHANGES[change]) == new, "made again, it holds"
        shutil.rmtree(root)
        if len(disk.calls) <= at:
            break
    assert answers == sorted(answers) and answers[0] != MADE == answers[-1]


@pytest.mark.parametrize("change", ["post a form with eval and alias", "finish an upload with eval and alias"])
def test_g69_an_upload_is_what_its_client_was_told_when_no_later_call_works(tmp_path: Path, change: str) -> None:
    http_uploads.furnish(tmp_path / "furnished")
    shutil.copytree(tmp_path / "furnished", tmp_path / "whole")
    with closing(http_uploads.HttpUploads(tmp_path / "whole")) as whole:
        assert http_uploads.CHANGES[change](whole).status == 201
    old, new = names(tmp_path / "furnished" / "data"), names(tmp_path / "whole" / "data")
    statuses: list[int] = []
    for at in count():
        shutil.copytree(tmp_path / "furnished", root := tmp_path / "data")
        disk = FaultyDisk(fail((errno.ENOSPC, errno.EIO)[at % 2]), lasting=True)
        with closing(http_uploads.HttpUploads(root, disk)) as tried, capture_logs():  # a traceback is slow to print
            disk.arm(at)
            reply, calls = http_uploads.CHANGES[change](tried), len(disk.calls)
        statuses.append(reply.status)
        found = names(root / "data")
        assert found in {507: [old], 503: [old, new], 201: [new]}[statuses[-1]], f"{statuses[-1]}, {at} calls work"
        assert statuses[-1] == 201 or WORDS[statuses[-1]] in reply.text
        shutil.rmtree(root)
        if calls <= at:
            break
    assert len(statuses) > 10 and set(statuses) == {507, 503, 201}


class Starved(Disk):
    """After the first commit this process opens no more files, as when it has too many open, until it is fed."""

    def __init__(self) -> None:
        self._limits: tuple[int, int] | None = None

    def commit(self, transaction: Callable[[], None]) -> None:
        transaction()
        if self._limits is None:
            self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, self._limits[1]))

    def feed(self) -> None:
        if self._limits is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)


@pytest.mark.parametrize("change", ["post a form with eval and alias", "finish an upload with eval and alias"])
def test_g69_what_cannot_be_read_after_the_commit_undoes_nothing(tmp_path: Path, change: str) -> None:
    http_uploads.furnish(tmp_path / "sent")
    disk = Starved()
    with closing(http_uploads.HttpUploads(tmp_path / "sent", disk)) as tried, capture_logs():
        old = names(tmp_path / "sent" / "data")
        try:
            reply = http_uploads.CHANGES[change](tried)
        finally:
            disk.feed()
        assert reply.status == 503 and WORDS[503] in reply.text
        assert http_uploads.CHANGES[change](tried).status in (200, 409), "a form comes to the same; an upload is over"
    with closing(http_uploads.HttpUploads(tmp_path / "sent")) as again:
        again.check()
    assert names(tmp_path / "sent" / "data") != old


def test_g69_a_cancelled_upload_may_come_back_if_its_end_was_not_synced(tmp_path: Path) -> None:
    disk = FaultyDisk(fail(errno.ENOSPC))
    uploads = Uploads(tmp_path, UploadLimits(), disk=disk)
    session, _ = uploads.begin(UploadSpec("", "x", None, b"{}", 300))
    disk.arm(1)
    with pytest.raises(Unsettled):
        uploads.cancel("", session.id)
    assert uploads.for_tenant("") == []


def test_g69_bytes_are_kept_for_a_name_that_the_next_start_may_find(tmp_path: Path) -> None:
    """SQLite undoes a commit that it could not sync, and after a kill finds it in its journal all the same."""
    disk = FaultyDisk(fail(errno.EIO))
    with closing(Storage(tmp_path / "data", disk)) as storage:
        disk.arm(None)
        CHANGES["upload"](storage)
        commit, (id,) = disk.calls.index("commit"), storage.store.ids()
        for number, left in ((errno.ENOSPC, []), (errno.EIO, [id])):
            disk.arm(None)
            storage.catalog.delete("new")
            disk.happen = fail(number)
            disk.arm(commit)
            assert outcome_of(storage, CHANGES["upload"]) == (UNKNOWN if left else REFUSED)
            assert list(storage.store.ids()) == left
            disk.arm(None)
            CHANGES["upload"](storage)
        disk.arm(None)
    with closing(Storage(tmp_path / "data")) as storage:
        storage.check()
