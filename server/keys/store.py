"""Keys in a database: made, listed, revoked, rotated; by several processes at once.

Owns what a key is and when it is live. The database is a file of its own beside the registry's: keys are the server's
affair, of which the adapters know nothing; the registry can be copied, or rebuilt from its blobs, without keys being
copied or lost; and the command line writes keys while a server runs, which has the registry to itself. SQLite's WAL
lets one process write while others read.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.database import Database, Schema
from adapters.disk import Disk
from adapters.errors import quoted
from server.keys.errors import KeyNotLive, UnknownKey
from server.keys.tables import KeyRow
from server.keys.token import digest, new_token
from server.principal import Principal, Scope

_SCHEMA = Schema("keys", Path(__file__).parent / "migrations")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret. Times are in UTC; a key without `expires` lives until it is revoked."""

    id: str
    digest: bytes = field(repr=False)
    tenant: str
    project: str
    scopes: frozenset[Scope]
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    replaces: str | None

    def live(self, now: datetime) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)

    def state(self, now: datetime) -> str:
        return "revoked" if self.revoked is not None else "live" if self.live(now) else "expired"

    @property
    def principal(self) -> Principal:
        return Principal(self.tenant, self.project, self.id, self.scopes)


class KeyStore:
    """Safe to use from many threads and processes. What it does is logged with `by`, who did it."""

    def __init__(self, url: str, pepper: bytes, by: str = "", disk: Disk | None = None) -> None:
        """Opens the database and brings its schema up to date. Raises DatabaseUnusable when that cannot be done."""
        self.pepper = pepper
        self._by = by
        self._database = Database(url, _SCHEMA, disk)

    def close(self) -> None:
        self._database.close()

    def changes(self) -> Callable[[], int]:
        """A number that is another one after every change, whichever process made it; cheap to ask."""
        return self._database.changes()

    def create(
        self, tenant: str, project: str, scopes: Iterable[Scope], lifetime: timedelta | None = None
    ) -> tuple[Key, str]:
        """A new key, and its text, which is kept nowhere."""
        now = _now()
        with self._database.writing() as session:
            row, text = self._insert(session, tenant, project, _spelled(scopes), now, lifetime)
        self._note("key_created", row)
        return _key(row), text

    def revoke(self, id: str) -> Key:
        """Refuse it from now on. Idempotent. Raises UnknownKey."""
        with self._database.writing() as session:
            row = _found(session, id)
            row.revoked = row.revoked or _now()
        self._note("key_revoked", row)
        return _key(row)

    def rotate(self, id: str, grace: timedelta) -> tuple[Key, str]:
        """A successor with the same rights and lifetime; the old key stays valid for `grace` and no longer.

        Raises UnknownKey, KeyNotLive; a key that has a live successor already has had its rotation.
        """
        now = _now()
        with self._database.writing() as session:
            old = _found(session, id)
            if not _key(old).live(now.replace(tzinfo=UTC)):
                raise KeyNotLive(f"The key {quoted(id)} is not valid any more. Make a new one with `keys create`.")
            for heir in session.scalars(select(KeyRow).where(KeyRow.replaces == id)):
                if _key(heir).live(now.replace(tzinfo=UTC)):
                    raise KeyNotLive(f"{quoted(id)} was rotated already: its successor is {heir.id}. Rotate that one.")
            lifetime = None if old.expires is None else old.expires - old.created
            row, text = self._insert(session, old.tenant, old.project, old.scopes, now, lifetime, replaces=id)
            old.expires = min(old.expires or datetime.max, now + grace)
        self._note("key_rotated", row, replaces=id)
        return _key(row), text

    def every(self) -> list[Key]:
        """All keys that were ever made, oldest first."""
        with self._database.reading() as session:
            return [_key(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.created, KeyRow.id))]

    def _insert(
        self,
        session: Session,
        tenant: str,
        project: str,
        scopes: str,
        now: datetime,
        lifetime: timedelta | None,
        replaces: str | None = None,
    ) -> tuple[KeyRow, str]:
        token = new_token()
        row = KeyRow(
            id=token.id,
            digest=digest(self.pepper, token.text),
            tenant=tenant,
            project=project,
            scopes=scopes,
            created=now,
            expires=None if lifetime is None else now + lifetime,
            revoked=None,
            replaces=replaces,
        )
        session.add(row)
        session.flush()
        return row, token.text

    def _note(self, event: str, row: KeyRow, **more: str) -> None:
        _log.info(event, key=row.id, tenant=row.tenant, project=row.project, scopes=row.scopes, by=self._by, **more)


def _key(row: KeyRow) -> Key:
    return Key(
        id=row.id,
        digest=row.digest,
        tenant=row.tenant,
        project=row.project,
        scopes=frozenset(Scope(word) for word in row.scopes.split()),
        created=row.created.replace(tzinfo=UTC),
        expires=row.expires and row.expires.replace(tzinfo=UTC),
        revoked=row.revoked and row.revoked.replace(tzinfo=UTC),
        replaces=row.replaces,
    )


def _found(session: Session, id: str) -> KeyRow:
    row = session.get(KeyRow, id)
    if row is None:
        raise UnknownKey(f"There is no key {quoted(id)}. `rootstock keys ls` lists them.")
    return row


def _spelled(scopes: Iterable[Scope]) -> str:
    return " ".join(sorted(set(scopes)))


def _now() -> datetime:
    """In UTC, without a zone, as the database keeps times."""
    return datetime.now(UTC).replace(tzinfo=None)
