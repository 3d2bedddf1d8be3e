"""Which adapters are shared, each with some tenants by name or with everybody.

Owns the shares in the registry's database, and the memory of them: every request asks. A share is of a name with all
its versions, those to come included, and goes with the name. Knows no HTTP and no keys.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from adapters.database import Database
from adapters.errors import UnknownAdapter, Unsettled, quoted
from adapters.tables import ShareRow, VersionRow

log = logging.getLogger(__name__)

EVERYBODY = "*"
"""Stands where a tenant's name may stand, and is none."""


class Shares:
    """Safe to use from many threads. `allows` asks memory: one process owns the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._known = self._read()

    def allows(self, name: str, tenant: str) -> bool:
        """Whether `name` is shared with `tenant`. It takes the same time whether `name` is there or not."""
        tenants = self._known.get(name, frozenset())
        return tenant in tenants or EVERYBODY in tenants

    def tenants_of(self, name: str) -> frozenset[str]:
        """With whom `name` is shared."""
        return self._known.get(name, frozenset())

    def share(self, name: str, tenant: str) -> None:
        """Idempotent. Raises UnknownAdapter."""
        with self._changing(name, lambda known: known | {tenant}) as session:
            if not session.scalar(select(exists().where(VersionRow.name == name))):
                raise UnknownAdapter(f"There is no adapter {quoted(name)}.")
            session.merge(ShareRow(name=name, tenant=tenant))

    def unshare(self, name: str, tenant: str) -> None:
        """Idempotent."""
        with self._changing(name, lambda known: known - {tenant}) as session:
            session.execute(delete(ShareRow).where(ShareRow.name == name, ShareRow.tenant == tenant))

    def forget(self, name: str) -> None:
        """After a name was deleted, and its shares with it: the next one of that spelling is shared with nobody."""
        with self._lock:
            try:
                self._known = self._read()
            except OSError:
                log.exception("with whom adapters are shared was not read; %s is shared with nobody", name)
                self._known = {**self._known, name: frozenset()}

    @contextmanager
    def _changing(self, name: str, change: Callable[[frozenset[str]], frozenset[str]]) -> Iterator[Session]:
        """Memory follows what was committed; where nobody knows what was, the database is asked."""
        with self._lock:
            try:
                with self._database.writing() as session:
                    yield session
            except Unsettled:
                self._known = self._read()
                raise
            self._known = {**self._known, name: change(self.tenants_of(name))}

    def _read(self) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = {}
        with self._database.reading() as session:
            for row in session.scalars(select(ShareRow)):
                found.setdefault(row.name, set()).add(row.tenant)
        return {name: frozenset(tenants) for name, tenants in found.items()}
