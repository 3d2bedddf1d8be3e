"""Changes to the storage that are killed with SIGKILL at every fail-point, each in a fork of this process.

Run as `python -m tests.support.crashes FOLDER`. Prints JSON: for each change, from fail-point to `old` or `new`; any
other word is what was found half done. Imports are paid once, and nothing is open when it forks.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.support.disks import HALVES, FaultyDisk, Moment, die
from tests.support.storage import CHANGES, Storage, furnish

Point = tuple[int, Moment]


def points(calls: list[str]) -> Iterator[Point]:
    """Before every call, halfway through those that have a half, and after the last."""
    for at, name in enumerate(calls):
        yield at, "before"
        if name in HALVES:
            yield at, "halfway"
    yield len(calls) - 1, "after"


def crash_everywhere(change: str, folder: Path) -> dict[str, str]:
    with closing(Storage(folder / "furnished")) as storage:
        old = storage.facts()
    whole = folder / "whole"
    shutil.copytree(folder / "furnished", whole)
    counting = FaultyDisk(die)
    with closing(Storage(whole, counting)) as storage:
        CHANGES[change](storage)
        new = storage.facts()
    shutil.rmtree(whole)
    found = {}
    for at, moment in points(counting.calls):
        crashed = folder / "crashed"
        shutil.copytree(folder / "furnished", crashed)
        kill(change, crashed, (at, moment))
        found[f"{moment} {counting.calls[at]} {at}"] = state(crashed, old, new)
        shutil.rmtree(crashed)
    return found


def kill(change: str, root: Path, point: Point) -> None:
    child = os.fork()
    if child == 0:
        CHANGES[change](Storage(root, FaultyDisk(die, *point)))
        os._exit(0)  # it must not get here
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (change, point, status)


def state(root: Path, old: object, new: object) -> str:
    with closing(Storage(root)) as storage:
        try:
            storage.check()
        except AssertionError as fault:
            return str(fault)
        facts = storage.facts()
    return "old" if facts == old else "new" if facts == new else f"half: {facts}"


def main(folder: Path) -> None:
    furnish(folder / "furnished")
    print(json.dumps({change: crash_everywhere(change, folder) for change in CHANGES}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
