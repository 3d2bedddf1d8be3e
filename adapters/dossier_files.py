"""The dossiers on disk: one small file for each name, so that a registry that was lost can be made again.

    <folder>/<sha256 of the name>.json

Owns when they are written: after the registry has committed, so that none ever shares what was not shared. Where
something was taken away, the change is not answered for until the dossier says so durably or is gone. A dossier is
never asked while the registry lives; each start writes those anew that a crash kept behind.
"""

import hashlib
import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.disk import Disk
from adapters.dossier import Dossier, DossierUnreadable, decode, encode
from adapters.errors import Unsettled
from adapters.registry import Registry

log = logging.getLogger(__name__)

DOSSIER_FOLDER = "names"
"""The folder's name, beside the blobs."""


class DossierFiles:
    """Keeps dossiers equal to the registry. Safe to use from many threads."""

    def __init__(self, registry: Registry, folder: Path, disk: Disk) -> None:
        self._registry, self._folder, self._disk = registry, folder, disk
        self._writing = threading.Lock()  # what is read of the registry last is also what is written last
        folder.mkdir(parents=True, exist_ok=True)

    def follow(self, name: str, ends: bool = False) -> None:
        """Write what the registry says of `name` now.

        A dossier that cannot be written is one behind, which is logged; the next change or start writes it. Not so
        where the change `ends` something, a share perhaps: then it is removed instead. Raises Unsettled when not even
        that can be done: no answer may say that it has ended.
        """
        with self._writing, self._trying(name, or_drop=ends):
            for dossier in self._registry.dossiers(name).values():
                self._write(dossier)

    def refresh(self) -> None:
        """At a start: write those that do not say what the registry says, and remove what belongs to no name.

        Raises OSError, as `follow` does.
        """
        with self._writing:
            known = self._registry.dossiers()
            for path in set(self._folder.iterdir()) - {path_of(self._folder, name) for name in known}:
                self._disk.unlink(path)
            self._disk.sync_directory(self._folder)
            for name, dossier in known.items():
                if not _says(path_of(self._folder, name), dossier):
                    with self._trying(name, or_drop=True):
                        self._write(dossier)

    def _write(self, dossier: Dossier) -> None:
        aside = self._folder / f".{secrets.token_hex(16)}"
        self._disk.replace(path_of(self._folder, dossier.name), encode(dossier), aside)

    @contextmanager
    def _trying(self, name: str, or_drop: bool) -> Iterator[None]:
        try:
            yield
        except OSError:
            log.exception("the dossier of %s was not written; the next change or start tries again", name)
            if or_drop:
                self._drop(name)

    def _drop(self, name: str) -> None:
        try:
            self._disk.unlink(path_of(self._folder, name))
            self._disk.sync_directory(self._folder)
        except OSError as error:
            raise Unsettled(error.errno, f"the dossier was not removed either: {error.strerror}") from error


def path_of(folder: Path, name: str) -> Path:
    """No name is ever part of a path."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()}.json"


def _says(path: Path, dossier: Dossier) -> bool:
    try:
        return decode(path.read_bytes()) == dossier
    except (OSError, DossierUnreadable):
        return False
