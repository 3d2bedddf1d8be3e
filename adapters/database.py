"""Opening a database: durability settings, transactions, migrations.

Owns the engine and what differs between databases. Knows no tables but through the migrations; the registry's are
what it opens unless it is given others.
"""

import errno
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Transaction, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from adapters.disk import Disk
from adapters.errors import DatabaseUnusable, Unsettled

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_MS = 30_000
FEW = 500
"""So many keys may stand in a question; where there are more, the whole table is read."""
_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    f"PRAGMA busy_timeout = {BUSY_MS}",
)
_DISK_TROUBLE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,  # descriptors may have run out
}


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database holds, as messages call it; the folder of alembic's that makes its tables; how to mend it."""

    holds: str
    migrations: Path
    mend: str = "Restore it from a backup, or move it away to start with an empty one."

    @property
    def damaged(self) -> str:
        return f"The database of the {self.holds} is damaged, or no database. {self.mend}"


REGISTRY = Schema(
    "registry",
    MIGRATIONS,
    "Restore it from a backup, or run `rootstock doctor` on this data directory: it says what is wrong, and with "
    "--rebuild makes the registry anew from what stands beside the adapters.",
)


class Database:
    """Sessions on one database. Safe to use from many threads."""

    def __init__(self, url: str, schema: Schema = REGISTRY, disk: Disk | None = None) -> None:
        """Opens and migrates. Raises DatabaseUnusable when the file is damaged or a newer release wrote it."""
        self._schema, self._disk = schema, disk or Disk()
        self._watching: list[PoolProxiedConnection] = []
        self._engine = create_engine(url)
        self._sqlite = self._engine.dialect.name == "sqlite"
        if self._sqlite:
            _tune_sqlite(self._engine)
        try:
            with _told_as_disk():
                self._migrate()
        except DatabaseError as error:
            self.close()
            raise DatabaseUnusable(self._schema.damaged) from error
        except (DatabaseUnusable, OSError):
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the database, and writes nothing."""
        with _told_as_disk(), self._engine.connect() as connection, connection.begin(), _session(connection) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that commits at the end, or rolls back on an exception. Writers run one after the other.

        Raises OSError when the disk is full or fails, as writing a file does; Unsettled when it fails at the commit.
        """
        with _told_as_disk(), self._engine.connect() as plain:
            connection = plain.execution_options(rootstock_write=True)
            with connection.begin() as transaction, _session(connection) as session:
                yield session
                session.flush()
                self._commit(transaction)

    def close(self) -> None:
        for connection in self._watching:
            connection.close()
        self._engine.dispose()

    def changes(self) -> Callable[[], int]:
        """A question that has another answer after every commit, by whichever process; it reads no more than memory.

        A database that does not know has another answer each time.
        """
        if not self._sqlite:
            return count().__next__
        watching = self._engine.raw_connection()  # the number counts the commits of other connections only
        self._watching.append(watching)
        native: Any = watching.driver_connection

        def answer() -> int:
            number: int = native.execute("PRAGMA data_version").fetchone()[0]
            return number

        return answer

    def _commit(self, transaction: Transaction) -> None:
        """A disk without room has taken nothing. What could not be synced is undone, and the next start may find it."""
        try:
            with _told_as_disk():
                self._disk.commit(transaction.commit)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise Unsettled(error.errno, f"the commit: {error.strerror}") from error

    def _check_sqlite(self, connection: Connection) -> None:
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if verdict != "ok":
            raise DatabaseUnusable(self._schema.damaged)

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(self._schema.migrations).replace("%", "%%"))
        script = ScriptDirectory.from_config(config)
        with (
            self._engine.connect().execution_options(rootstock_write=True) as connection,
            connection.begin() as transaction,
        ):
            if self._sqlite:
                self._check_sqlite(connection)
            current = MigrationContext.configure(connection).get_current_revision()
            if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
                raise DatabaseUnusable(
                    f"The database of the {self._schema.holds} has schema {current}, which a newer release wrote; this "
                    f"release knows schemas up to {script.get_current_head()}. Upgrade, or use another data directory."
                )
            if current != script.get_current_head():
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                self._disk.commit(transaction.commit)


@contextmanager
def _told_as_disk() -> Iterator[None]:
    """SQLite's words for a disk in trouble, as the OSError that writing a file would raise."""
    try:
        yield
    except OperationalError as error:
        code = getattr(error.orig, "sqlite_errorcode", None)
        trouble = None if code is None else _DISK_TROUBLE.get(code & 0xFF)  # the high bits only say where it happened
        if trouble is None:
            raise
        raise OSError(trouble, f"the database: {error.orig}") from error


def _session(connection: Connection) -> Session:
    return Session(bind=connection, expire_on_commit=False)


def _tune_sqlite(engine: Engine) -> None:
    """WAL with FULL keeps committed rows through power loss; IMMEDIATE makes writers queue instead of failing late."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        native: Any = connection
        native.isolation_level = None  # the driver must not begin transactions on its own
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("rootstock_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
