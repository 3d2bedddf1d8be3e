"""What a resumable upload is, and how it lies on disk, so that it outlives the server.

    <root>/<id>/{session.json, config, weights}

Owns that layout. `session.json` is replaced in one step; how far the upload has come is the length of `weights`. What
may be done with an upload is decided in `uploads.py`.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

State = Literal["pending", "validating", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Order:
    """What a tenant wants to upload: `size` is the weights file's in bytes, `digest` its SHA-256 if it was told."""

    tenant: str
    name: str
    alias: str | None
    config: bytes
    size: int
    digest: str | None = None


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

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def create(self, order: Order, created: float) -> Session:
        """On disk before it is told. What a crash leaves half made has no `session.json`."""
        session = Session(
            secrets.token_hex(16), order.tenant, order.name, order.alias, order.size, order.digest, created
        )
        folder = self._root / session.id
        folder.mkdir()
        self.weights(session.id).touch()
        (folder / "config").write_bytes(order.config)
        self.save(session)
        return session

    def save(self, session: Session) -> None:
        folder = self._root / session.id
        written = folder / "session.json.new"
        with written.open("w") as file:
            json.dump(asdict(session), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, folder / "session.json")

    def load(self) -> Iterator[Session]:
        """Every upload that was begun. Removes what is half made."""
        for folder in sorted(self._root.iterdir()):
            try:
                told: Mapping[str, object] = json.loads((folder / "session.json").read_bytes())
                session = Session(**told)  # type: ignore[arg-type]
            except (OSError, ValueError, TypeError):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            yield session

    def weights(self, id: str) -> Path:
        return self._root / id / "weights"

    def config(self, id: str) -> bytes:
        return (self._root / id / "config").read_bytes()

    def offset(self, id: str) -> int:
        """How many bytes are there; 0 when they were taken away because the upload is over."""
        try:
            return self.weights(id).stat().st_size
        except FileNotFoundError:
            return 0

    def drop_bytes(self, id: str) -> None:
        for name in ("weights", "config"):
            with contextlib.suppress(FileNotFoundError):
                (self._root / id / name).unlink()

    def remove(self, id: str) -> None:
        shutil.rmtree(self._root / id, ignore_errors=True)
