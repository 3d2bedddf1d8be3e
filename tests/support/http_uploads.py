"""Uploads as clients send them, over the whole server: what a client sees before and after each.

Opened like tests/support/storage.py's catalog, so that the same faults and kills are put into both.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from starlette.testclient import TestClient

from adapters.disk import Disk
from tests.support.server_rig import adapter_config, adapter_weights, form, make_rig
from tests.support.storage import Storage

UPLOADS = "/v1/adapters/uploads"
OLD_ROWS = '{"prompt": "a", "completion": "b"}\n'
ROWS = '{"prompt": "c", "completion": "d"}\n'
WEIGHTS = adapter_weights(3)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    text: str


class HttpUploads:
    """One server's data under `root`, and a client. `close` when done."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._root = root
        self._rig = make_rig(root, disk=disk)
        self.http = TestClient(self._rig.app)

    def close(self) -> None:
        self._rig.registry.close()

    def facts(self) -> tuple[object, ...]:
        """Every version with its aliases and eval file; the names' last numbers; the blobs."""
        names = sorted(card["name"] for card in self.http.get("/v1/adapters").json()["data"])
        versions = [card for name in names for card in self.http.get(f"/v1/adapters/{name}/versions").json()["data"]]
        seen = [(card["id"], card["aliases"], self._rows(f"{card['name']}@{card['version']}")) for card in versions]
        numbers = {name: dossier.kept["names"] for name, dossier in self._rig.registry.dossiers().items()}
        return seen, numbers, sorted(self._rig.store.ids())

    def upload(self) -> tuple[str, str]:
        """The path of the upload in pieces, and its state."""
        (found,) = self.http.get(UPLOADS).json()["data"]
        return f"{UPLOADS}/{found['id']}", found["state"]

    def check(self) -> None:
        """After a start."""
        with closing(Storage(self._root / "data")) as storage:
            storage.check()
        at, state = self.upload()
        left = {path.name for path in (self._root / "uploads" / "resumable" / at.rpartition("/")[2]).iterdir()}
        assert left == {"session.json"} | ({"weights", "config", "eval"} if state == "pending" else set())

    def _rows(self, ref: str) -> str | None:
        found = self.http.get(f"/v1/adapters/{ref}/eval")
        return found.text if found.status_code == 200 else None


def furnish(root: Path) -> None:
    """A version in production with an eval file, and an upload in pieces whose bytes are all there."""
    root.mkdir(parents=True, exist_ok=True)
    with closing(HttpUploads(root)) as uploads:
        assert _post(uploads, 1, OLD_ROWS).status == 201
        order = {"name": "pirate", "alias": "prod", "eval": ROWS, "config": adapter_config().decode()}
        at = uploads.http.post(UPLOADS, json=order | {"size": len(WEIGHTS)}).headers["location"]
        uploads.http.patch(at, content=WEIGHTS, headers={"upload-offset": "0"}).raise_for_status()


def _post(uploads: HttpUploads, seed: int, rows: str) -> Answer:
    files = form(seed) | {"eval": ("eval.jsonl", rows.encode(), "application/jsonl")}
    reply = uploads.http.post("/v1/adapters", data={"name": "pirate", "alias": "prod"}, files=files)
    return Answer(reply.status_code, reply.text)


def _put(uploads: HttpUploads) -> Answer:
    digest = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    reply = uploads.http.put(uploads.upload()[0], params={"digest": digest})
    return Answer(reply.status_code, reply.text)


CHANGES: Mapping[str, Callable[[HttpUploads], Answer]] = {
    "post a form with eval and alias": lambda uploads: _post(uploads, 2, ROWS),
    "post a form of what is there with another eval": lambda uploads: _post(uploads, 1, ROWS),
    "finish an upload with eval and alias": _put,
}
