"""What a server keeps beside its adapters: uploads under way, API keys, the usage ledger; and changes to them.

Opened like tests/support/storage.py's catalog, so that the same faults and kills are put into both.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from adapters.disk import Disk
from adapters.upload_files import UploadSession, UploadSpec
from adapters.uploads import UploadLimits, Uploads
from adapters.version import Version
from server.datadir import DataDir
from server.keys.opening import open_keys
from server.keys.store import Key, KeyStore
from server.principal import Scope
from server.usage.ledger import Ledger, Usage, UsageFilter, UsageStart

WEIGHTS = bytes(range(256)) * 64
HALF = len(WEIGHTS) // 2
DIGEST = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
BEFORE = Usage("before", "acme", "p", "k", "", 1, 0, 1, "stop", 1.0, 2.0)
BEGUN = UsageStart("begun", "acme", "p", "k", "", 5, 1.5)


class ServerRecords:
    """Each part is opened when it is first asked for: a server without keys has no file of keys. `close` when done."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.data = root, DataDir(root)
        self._disk = disk
        self._uploads: Uploads | None = None
        self._keys: KeyStore | None = None
        self._ledger: Ledger | None = None

    @property
    def uploads(self) -> Uploads:
        self._uploads = self._uploads or Uploads(self.data.uploads, UploadLimits(), disk=self._disk)
        return self._uploads

    @property
    def keys(self) -> KeyStore:
        self._keys = self._keys or open_keys(self.data, disk=self._disk)
        return self._keys

    @property
    def ledger(self) -> Ledger:
        self._ledger = self._ledger or Ledger(self.data.usage_url, self._disk)
        return self._ledger

    def close(self) -> None:
        for part in (self._keys, self._ledger):
            if part is not None:
                part.close()

    def upload(self, name: str) -> UploadSession:
        (found,) = (session for session, _ in self.uploads.for_tenant("acme") if session.name == name)
        return found

    def key(self, tenant: str) -> Key:
        return next(key for key in self.keys.every() if key.tenant == tenant)

    def facts(self) -> object:
        """What a client can see; of an upload's bytes, whether they are all there."""
        now = datetime.now(UTC)
        uploads = [(each.name, each.state, offset == each.size) for each, offset in self.uploads.for_tenant("acme")]
        every = self.keys.every() if self.data.keys.exists() else []
        keys = [(key.tenant, key.state(now), key.expires is None, key.replaces) for key in every]
        return uploads, keys, list(self.ledger.rows(UsageFilter())), self.ledger.under_way()

    def check(self) -> None:
        """After a start: nothing is half there, and what is there is what was sent."""
        ids = set()
        for session, offset in self.uploads.for_tenant("acme"):
            ids.add(session.id)
            left = {path.name for path in (self.data.uploads / session.id).iterdir()}
            assert left == ({"session.json", "weights", "config"} if session.open else {"session.json"}), left
            assert not session.open or self._bytes(session) == WEIGHTS[:offset], "what is there is not what was sent"
        folders = {path.name for path in self.data.uploads.iterdir()}
        assert folders == ids, f"left behind: {folders - ids}"
        assert len(self.keys.pepper) == 32, "keys can be made from now on"
        odd = {path.name for path in self.root.glob(".*")}
        assert not odd, f"left behind: {odd}"
        assert self.data.pepper.stat().st_mode & 0o077 == self.data.keys.stat().st_mode & 0o077 == 0

    def _bytes(self, session: UploadSession) -> bytes:
        return (self.data.uploads / session.id / "weights").read_bytes()


def furnish(root: Path) -> None:
    """Uploads in every state, two keys, one request that has ended and one that has begun."""
    with closing(ServerRecords(root)) as records:
        for name in ("begun", "halfway", "whole", "unwanted", "broken"):
            _begin(records, name)
        _write(records, "halfway", WEIGHTS[:HALF])
        for name in ("whole", "unwanted", "broken"):
            _write(records, name, WEIGHTS)
        for tenant in ("acme", "other"):
            records.keys.create(tenant, "p", [Scope.INFER])
        records.ledger.append([BEFORE], [BEGUN])


def furnish_barely(root: Path) -> None:
    """Without keys."""
    with closing(ServerRecords(root)) as records:
        records.ledger.append([BEFORE])


def _begin(records: ServerRecords, name: str) -> None:
    records.uploads.begin(UploadSpec("acme", name, None, b"{}", len(WEIGHTS)))


def _write(records: ServerRecords, name: str, content: bytes) -> None:
    session = records.upload(name)
    _, offset = records.uploads.find("acme", session.id)
    with records.uploads.writing("acme", session.id, offset) as writer:
        writer.write(content)


def _finish(records: ServerRecords, name: str) -> None:
    def add(session: UploadSession, config: bytes, weights: Path, rows: bytes | None) -> tuple[Version, bool]:
        return cast(Version, _Numbered()), True

    records.uploads.finish("acme", records.upload(name).id, DIGEST, add)


class _Numbered:
    number = 1


CHANGES: Mapping[str, Callable[[ServerRecords], None]] = {
    "begin an upload": lambda records: _begin(records, "new"),
    "write a chunk": lambda records: _write(records, "begun", WEIGHTS),
    "write the last chunk": lambda records: _write(records, "halfway", WEIGHTS[HALF:]),
    "finish an upload": lambda records: _finish(records, "whole"),
    "cancel an upload": lambda records: records.uploads.cancel("acme", records.upload("unwanted").id),
    "make a key": lambda records: _ignore(records.keys.create("new", "p", [Scope.READ], timedelta(days=1))),
    "revoke a key": lambda records: _ignore(records.keys.revoke(records.key("other").id)),
    "rotate a key": lambda records: _ignore(records.keys.rotate(records.key("acme").id, timedelta(hours=1))),
    "note that a request has begun": lambda records: records.ledger.append([], [replace(BEGUN, id="after")]),
    "note a request's usage": lambda records: records.ledger.append([BEGUN.ended(0, 7, "stop", 2.5)]),
    "end what was under way": lambda records: records.ledger.append(records.ledger.lost(3.0)),
}


FIRST_CHANGES: Mapping[str, Callable[[ServerRecords], None]] = {
    "make the first key": lambda records: _ignore(records.keys.create("new", "p", [Scope.READ])),
    "begin the first upload": lambda records: _begin(records, "new"),
}
"""To what `furnish_barely` made."""


def _ignore(result: object) -> None:
    """A change is made for its effect."""
