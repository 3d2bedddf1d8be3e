"""The servers of a benchmark: they are asked for the adapters of this run, whatever an earlier one left there."""

from pathlib import Path

import httpx

from bench.launch import Server, target
from tests.support.http import LiveServer
from tests.support.server_rig import BASE, write_adapter


def served(server: Server, folder: Path, seeds: tuple[int, ...]) -> list[str]:
    """What is behind a name after each of some runs."""
    found = []
    for seed in seeds:
        target("served", server, [write_adapter(folder, seed)])
        found.append(httpx.get(f"{server.url}/v1/adapters/{folder.name}").json()["id"])
    return found


def test_a_server_of_ours_serves_what_was_uploaded_last(live: LiveServer, tmp_path: Path) -> None:
    first, second, third = served(Server(live.url, BASE, None, pid=1), tmp_path / "a0", (0, 1, 0))
    assert first == third != second


def test_nothing_is_deleted_on_a_server_of_others(live: LiveServer, tmp_path: Path) -> None:
    first, second = served(Server(live.url, BASE, None), tmp_path / "theirs", (0, 1))
    assert first != second
    assert httpx.get(f"{live.url}/v1/adapters/theirs@1").json()["id"] == first
