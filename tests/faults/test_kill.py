"""G68: kill -9 at every fail-point of every change to what a server keeps; the next start finds it as it was
before the change, or after it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import http_uploads, server_records
from tests.support.crashes import FOUND, KILLED, LOST, NO_MORE, SHARING

CHANGES = (*KILLED, *server_records.CHANGES, *server_records.FIRST_CHANGES, *http_uploads.CHANGES)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """For each change, what was found after a kill at each of its fail-points."""
    folder = tmp_path_factory.mktemp("crashes")
    command = [sys.executable, "-m", "tests.support.crashes", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=420)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, dict[str, str]] = json.loads((folder / FOUND).read_bytes())
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_g68_a_kill_leaves_the_old_state_or_the_new_one(change: str, crashes: dict[str, dict[str, str]]) -> None:
    found = {point: state for point, state in crashes[change].items() if LOST not in point}
    assert not {point: state for point, state in found.items() if state not in ("old", "new")}
    states = list(found.values())
    assert states[0] == "old" and states[-1] == "new"
    assert states == sorted(states, reverse=True), "once a change is made, a later crash does not undo it"


@pytest.mark.parametrize("change", SHARING)
def test_g70_a_registry_lost_in_a_kill_lends_no_more_than_was_granted(
    change: str, crashes: dict[str, dict[str, str]]
) -> None:
    found = {point: state for point, state in crashes[change].items() if LOST in point}
    assert len(found) > 5 and set(found.values()) == {NO_MORE}, found
