"""What a resumable upload is, and how it lies on disk, so that it outlives the server.

    <root>/<id>/{session.json, config, weights, eval}
    <root>/.<id>/        what is being made or removed

Owns that layout, and the bytes on their way into it. A folder is renamed into place and out of it, so an upload is
there whole or not at all; `session.json` is replaced in one step; how far the upload has come is the length of
`weights`. What may be done with an upload is decided in `uploads.py`.
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
from adapters.errors import Unsettled, UploadOverflow

log = logging.getLogger(__name__)

State = Literal["pending", "validating", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class UploadSpec:
    """What a tenant wants to upload: `size` is the weights file's in bytes, `digest` its SHA-256 if it was given,
    `eval` the eval file that the version is to carry."""

    tenant: str
    name: str
    alias: str | None
    config: bytes
    size: int
    digest: str | None = None
    eval: bytes | None = None


@dataclass(frozen=True, slots=True)
class UploadSession:
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


class UploadWriter:
    """Appends to one upload; what was written stays, however the request ends."""

    def __init__(self, disk: Disk, file: BinaryIO, offset: int, size: int) -> None:
        self._disk, self._file, self.offset, self.size = disk, file, offset, size
        self._failed: OSError | None = None

    def write(self, data: bytes) -> None:
        """Raises UploadOverflow, and then nothing of `data` was written.

        Once the disk has failed, nothing more is written: a part of `data` may be there, and what came next would not
        follow it.
        """
        if self.offset + len(data) > self.size:
            raise UploadOverflow(self.size)
        if self._failed is not None:
            raise self._failed
        try:
            self._disk.write(self._file, data)
        except OSError as error:
            self._failed = error
            raise
        self.offset += len(data)


class UploadFiles:
    """Raises OSError as it comes. Paths are made of ids of our own making only."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._root, self.disk = root, disk or Disk()
        root.mkdir(parents=True, exist_ok=True)

    def create(self, spec: UploadSpec, created: float) -> UploadSession:
        """On disk when this returns, or not at all."""
        session = UploadSession(
            secrets.token_hex(16), spec.tenant, spec.name, spec.alias, spec.size, spec.digest, created
        )
        aside, home = self._aside(session.id), self._root / session.id
        try:
            self.disk.mkdir(aside)
            self.disk.put(aside / "weights", b"")
            self.disk.put(aside / "config", spec.config)
            if spec.eval is not None:
                self.disk.put(aside / "eval", spec.eval)
            self.disk.put(aside / "session.json", _encoded(session))
            self.disk.sync_directory(aside)
            self.disk.rename(aside, home)
            self.disk.sync_directory(self._root)
        except BaseException:
            with contextlib.suppress(OSError):
                home.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return session

    def save(self, session: UploadSession) -> None:
        folder = self._root / session.id
        self.disk.replace(folder / "session.json", _encoded(session), aside=folder / "session.json.new")

    def load(self) -> Iterator[UploadSession]:
        """Every upload that was begun. Removes what a killed server left half done."""
        for folder in sorted(self._root.iterdir()):
            try:
                if folder.name.startswith("."):
                    raise ValueError("it was being made or removed")
                fields: Mapping[str, object] = json.loads((folder / "session.json").read_bytes())
                session = UploadSession(**fields)  # type: ignore[arg-type]
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


def _encoded(session: UploadSession) -> bytes:
    return json.dumps(asdict(session)).encode()
