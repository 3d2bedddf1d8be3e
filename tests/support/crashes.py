"""Changes to the storage that are killed with SIGKILL at every fail-point, each in a fork of this process.

Run as `python -m tests.support.crashes FOLDER`. Writes JSON there: for each change, from fail-point to `old` or `new`;
any other word is what was found half done. Imports are paid once, and nothing is open when it forks.

What is changed is the catalog's storage, or what a server keeps beside it, or both by a request to the whole rig.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adapters.disk import Disk
from adapters.recovery import rebuild
from adapters.store import BlobStore
from tests.support import http_uploads, server_records, storage
from tests.support.disks import HALVES, FaultyDisk, Moment, die

FOUND = "found.json"
LOST = "and the registry is lost"
KILLED = {change: do for change, do in storage.CHANGES.items() if change not in storage.ALIKE}
SHARING = ("share", "unshare", "delete", "upload a version and move its alias")
NO_MORE = "no more than was shared"
Point = tuple[int, Moment]


class Kept(Protocol):
    """Something that keeps things on a disk."""

    def facts(self) -> object: ...
    def check(self) -> None: ...
    def close(self) -> None: ...


class Open(Protocol):
    def __call__(self, root: Path, disk: Disk | None = None, /) -> Kept: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What is opened in a folder, how it is filled, and what is done to it."""

    open: Open
    furnish: Callable[[Path], None]
    changes: Mapping[str, Callable[[Any], object]]


SUBJECTS = (
    Subject(storage.Storage, storage.furnish, KILLED),
    Subject(server_records.ServerRecords, server_records.furnish, server_records.CHANGES),
    Subject(server_records.ServerRecords, server_records.furnish_barely, server_records.FIRST_CHANGES),
    Subject(http_uploads.HttpUploads, http_uploads.furnish, http_uploads.CHANGES),
)


def points(calls: list[str]) -> Iterator[Point]:
    """Before every call, halfway through those that have a half, and after the last."""
    for at, name in enumerate(calls):
        yield at, "before"
        if name in HALVES:
            yield at, "halfway"
    yield len(calls) - 1, "after"


def crash_everywhere(subject: Subject, change: str, folder: Path) -> dict[str, str]:
    with closing(subject.open(folder / "furnished")) as kept:
        old = kept.facts()
    whole = folder / "whole"
    shutil.copytree(folder / "furnished", whole)
    counting = FaultyDisk(die)
    with closing(subject.open(whole, counting)) as kept:
        subject.changes[change](kept)
        new = kept.facts()
    shutil.rmtree(whole)
    assert old != new, f"{change} changes nothing"
    found = {}
    for at, moment in points(counting.calls):
        crashed = folder / "crashed"
        shutil.copytree(folder / "furnished", crashed)
        kill(subject, change, crashed, (at, moment))
        point = f"{moment} {counting.calls[at]} {at}"
        if subject.open is storage.Storage and change in SHARING:
            acknowledged = (at, moment) == (len(counting.calls) - 1, "after")
            found[f"{point}, {LOST}"] = lost(crashed, folder / "furnished", acknowledged)
        found[point] = state(subject, crashed, old, new)
        shutil.rmtree(crashed)
    return found


def lost(crashed: Path, before: Path, acknowledged: bool) -> str:
    """What is shared once the registry was lost after the kill and made again: `no more than was shared`, it is hoped.

    What a change took away may be back as long as nobody has been told that it is gone.
    """
    copy = crashed.with_name("lost")
    shutil.copytree(crashed, copy)
    shared = shares(copy) if acknowledged else shares(copy) | shares(before)
    for path in copy.glob("registry.sqlite*"):
        path.unlink()
    rebuild(copy / "registry.sqlite", BlobStore(copy / "blobs"))
    found = shares(copy)
    shutil.rmtree(copy)
    return NO_MORE if found <= shared else f"shared too much: {found - shared}"


def shares(root: Path) -> set[tuple[str, str]]:
    with closing(storage.Storage(root)) as kept:
        return {(name, tenant) for name in kept.registry.dossiers() for tenant in kept.catalog.shares.tenants_of(name)}


def kill(subject: Subject, change: str, root: Path, point: Point) -> None:
    child = os.fork()
    if child == 0:
        subject.changes[change](subject.open(root, FaultyDisk(die, *point)))
        os._exit(0)  # it must not get here
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (change, point, status)


def state(subject: Subject, root: Path, old: object, new: object) -> str:
    with closing(subject.open(root)) as kept:
        try:
            kept.check()
        except AssertionError as fault:
            return str(fault)
        facts = kept.facts()
    return "old" if facts == old else "new" if facts == new else f"half: {facts}"


def main(folder: Path) -> None:
    found: dict[str, dict[str, str]] = {}
    for number, subject in enumerate(SUBJECTS):
        own = folder / str(number)
        subject.furnish(own / "furnished")
        found |= {change: crash_everywhere(subject, change, own) for change in subject.changes}
    (folder / FOUND).write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
