"""What a resumable upload is, and how it lies on disk, so that it outlives the server.

    <root>/<id>/{session.json, config, weights, eval}
    <root>/.<id>/        what is being made or removed

Owns that layout. A folder is renamed into place and out of it, so an upload is there whole or not at all;
`session.json` is replaced in one step; how far the upload has come is the length of `weights`. What may be done with an
upload is decided in `uploads.py`.
"""

import contextlib
import json
import logging
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from adapters.disk import Disk
from adapters.errors import Unsettled

log = logging.getLogger(__name__)

State = Literal["pending", "validating", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Order:
    """What a tenant wants to upload: `size` is the weights file's in bytes, `digest` its SHA-256 if it was told,
    `eval` the eval file that the version is to carry."""

    tenant: str
    name: str
    alias: str | None
    config: bytes
    size: int
    digest: str | None = None
    eval: bytes | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One upload. `created` is in seconds since 1970; `reason` is why it failed; `version` is what it became."""

    id: str
    tenant: str
    name: str
    alias: str | None
    size: int
    digest: str | None
    created: float
    state: State = "pending"
    reason: str | None = None
    version: int | None = None

    @property
    def open(self) -> bool:
        return self.state in ("pending", "validating")


class SessionDisk:
    """Raises OSError as it comes. Paths are made of ids of our own making only."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._root, self.disk = root, disk or Disk()
        root.mkdir(parents=True, exist_ok=True)

    def create(self, order: Order, created: float) -> Session:
        """On disk before it is told, or not at all."""
        session = Session(
            secrets.token_hex(16), order.tenant, order.name, order.alias, order.size, order.digest, created
        )
        aside, home = self._aside(session.id), self._root / session.id
        try:
            self.disk.mkdir(aside)
            self.disk.put(aside / "weights", b"")
            self.disk.put(aside / "config", order.config)
            if order.eval is not None:
                self.disk.put(aside / "eval", order.eval)
            self.disk.put(aside / "session.json", _spelled(session))
            self.disk.sync_directory(aside)
            self.disk.rename(aside, home)
            self.disk.sync_directory(self._root)
        except BaseException:
            with contextlib.suppress(OSError):
                home.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return session

    def save(self, session: Session) -> None:
        folder = self._root / session.id
        self.disk.replace(folder / "session.json", _spelled(session), aside=folder / "session.json.new")

    def load(self) -> Iterator[Session]:
        """Every upload that was begun. Removes what a killed server left half done."""
        for folder in sorted(self._root.iterdir()):
            try:
                if folder.name.startswith("."):
                    raise ValueError("it was being made or removed")
                told: Mapping[str, object] = json.loads((folder / "session.json").read_bytes())
                session = Session(**told)  # type: ignore[arg-type]
            except (OSError, ValueError, TypeError):
                self._discard(folder)
                continue
            (folder / "session.json.new").unlink(missing_ok=True)
            yield session

    def weights(self, id: str) -> Path:
        return self._root / id / "weights"

    def append(self, id: str) -> BinaryIO:
        """The weights, open for writing at their end."""
        return self.disk.append(self.weights(id))

    def config(self, id: str) -> bytes:
        return (self._root / id / "config").read_bytes()

    def eval(self, id: str) -> bytes | None:
        try:
            return (self._root / id / "eval").read_bytes()
        except FileNotFoundError:
            return None

    def free_bytes(self) -> int:
        """What the disk has left."""
        return shutil.disk_usage(self._root).free

    def offset(self, id: str) -> int:
        """How many bytes are there; 0 when they were taken away because the upload is over."""
        try:
            return self.weights(id).stat().st_size
        except FileNotFoundError:
            return 0

    def drop_bytes(self, id: str) -> None:
        """Of an upload that is over. What cannot be removed is only logged: the next start tries again."""
        try:
            for name in ("weights", "config", "eval"):
                self.disk.unlink(self._root / id / name)
        except OSError:
            log.exception("the bytes of the upload %s were not removed; the next start does it", id)

    def remove(self, id: str) -> None:
        """Forget it durably. Its files are removed then, or else by the next start. Raises Unsettled too."""
        aside = self._aside(id)
        try:
            self.disk.rename(self._root / id, aside)
        except FileNotFoundError:
            return
        try:
            self.disk.sync_directory(self._root)
        except OSError as error:
            raise Unsettled(error.errno, f"an upload was removed, perhaps not for good: {error.strerror}") from error
        finally:
            self._discard(aside)

    def exists(self, id: str) -> bool:
        return (self._root / id).exists()

    def _discard(self, folder: Path) -> None:
        try:
            self.disk.remove(folder)
        except OSError:
            log.exception("%s was not removed; the next start does it", folder)

    def _aside(self, id: str) -> Path:
        return self._root / f".{id}"


def _spelled(session: Session) -> bytes:
    return json.dumps(asdict(session)).encode()
