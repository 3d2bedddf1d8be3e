"""Resumable uploads: begun, continued at an offset, finished under a digest, or forgotten.

Owns what may be done with an upload and by whom, and the limits of each tenant. The flow is that of the OCI
distribution specification's blob uploads. Knows no HTTP; what becomes of a finished file is its caller's to say.
"""

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.clock import Clock
from adapters.disk import Disk
from adapters.errors import (
    AdapterError,
    ConditionFailed,
    DigestMismatch,
    TooManyUploads,
    UnknownUpload,
    UploadBusy,
    UploadIncomplete,
    UploadOver,
    UploadsFull,
    WrongOffset,
)
from adapters.upload_files import UploadFiles, UploadSession, UploadSpec, UploadWriter
from adapters.version import Version
from loader.digests import file_digest

log = logging.getLogger(__name__)

Add = Callable[[UploadSession, bytes, Path, bytes | None], tuple[Version, bool]]
"""Makes a version of a session's config, weights and, if it has one, eval file, as `Catalog.add` does."""


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Of one tenant: uploads that are open, and the bytes that they, and forms, are declared to have. Each upload lives
    `age_s` seconds.

    `most_in_all` are those that all tenants together may have open.
    """

    most_open: int = 16
    most_bytes: int = 8 << 30
    age_s: float = 86400.0
    most_in_all: int = 256


@dataclass(eq=False, slots=True)
class FormReservation:
    """Room for a form of `size` bytes, of which `received` are on the disk already."""

    tenant: str
    size: int
    received: int = 0

    @property
    def outstanding(self) -> int:
        return max(0, self.size - self.received)


class Uploads:
    """Safe to use from many threads. One tenant's upload does not exist for another."""

    def __init__(
        self,
        root: Path,
        limits: UploadLimits,
        now: Callable[[], float] | None = None,
        disk: Disk | None = None,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        """Takes up what an earlier server left, but for what has expired; a file that was being judged then is to be
        finished again. `free_bytes` says what the disk has left.
        """
        self._files, self._limits, self._now = UploadFiles(root, disk), limits, now or Clock().steady
        self._free_bytes = free_bytes or self._files.free_bytes
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._reservations: list[FormReservation] = []
        self._unnoted: set[str] = set()  # over, and the disk does not say so yet
        self._sessions: dict[str, UploadSession] = {}
        for session in list(self._files.load()):
            self._sessions[session.id] = session
            if not session.open:
                self._files.drop_bytes(session.id)
        self.collect()

    def begin(self, spec: UploadSpec) -> tuple[UploadSession, bool]:
        """An upload of this, and whether it is new: one that is open and announces the same is continued.

        Raises TooManyUploads, UploadsFull, and OSError ENOSPC when the disk has no room for what is open and this.
        """
        self.collect()
        with self._lock:
            mine = [session for session in self._sessions.values() if session.tenant == spec.tenant]
            same = next((each for each in mine if self._continues(each, spec)), None)
            if same is not None:
                return same, False
            self._check_number(spec.tenant)
            self._check_room(spec.tenant, spec.size)
            self._forget_surplus(mine)
            session = self._files.create(spec, self._now())
            self._sessions[session.id] = session
            return session, True

    @contextmanager
    def reserve(self, tenant: str, size: int) -> Iterator[FormReservation]:
        """Room for a form while it arrives, beside what open uploads have yet to bring. It may have `size` bytes.

        Raises TooManyUploads, and OSError ENOSPC.
        """
        with self._lock:
            self._check_room(tenant, size)
            reservation = FormReservation(tenant, size)
            self._reservations.append(reservation)
        try:
            yield reservation
        finally:
            self._reservations.remove(reservation)

    def find(self, tenant: str, id: str) -> tuple[UploadSession, int]:
        """The upload, and how many of its bytes are there. Raises UnknownUpload."""
        session = self._get(tenant, id)
        return session, self._offset(session)

    def for_tenant(self, tenant: str) -> list[tuple[UploadSession, int]]:
        """A tenant's uploads as `find` gives them, oldest first."""
        known = list(self._sessions.values())
        mine = [session for session in known if session.tenant == tenant and not self._expired(session)]
        return [(session, self._offset(session)) for session in sorted(mine, key=lambda session: session.created)]

    @contextmanager
    def writing(self, tenant: str, id: str, offset: int) -> Iterator[UploadWriter]:
        """Bytes from `offset` on, which is where those that are there end; durable when the block has ended.

        Raises UnknownUpload, UploadBusy, UploadOver, WrongOffset.
        """
        with self._claimed(tenant, id) as session:
            there = self._files.offset(id)
            if offset != there:
                raise WrongOffset(there)
            with self._files.append(id) as file:
                try:
                    yield UploadWriter(self._files.disk, file, there, session.size)
                finally:
                    self._files.disk.sync(file.fileno())

    def finish(self, tenant: str, id: str, digest: str, add: Add) -> tuple[Version, bool]:
        """Hand the file on if it is whole and has this SHA-256, which must be the one that was announced, if any was.
        Whatever is wrong with it ends the upload.

        What `add` made stands, even if it cannot be noted that the upload is over: after a restart it is open then, and
        finished again it comes to the same version.
        Raises UnknownUpload, UploadBusy, UploadOver, UploadIncomplete, DigestMismatch, and what `add` raises; after
        ConditionFailed, and after errors that are not the file's, the upload is as it was.
        """
        with self._claimed(tenant, id) as session:
            there = self._files.offset(id)
            if there < session.size:
                raise UploadIncomplete(there, session.size)
            self._sessions[id] = replace(session, state="validating")
            try:
                if session.digest not in (None, digest) or file_digest(self._files.weights(id)) != digest:
                    raise DigestMismatch()
                files = self._files
                version, created = add(session, files.config(id), files.weights(id), files.eval(id))
            except BaseException as error:
                self._sessions[id] = session
                if isinstance(error, AdapterError) and not isinstance(error, ConditionFailed):
                    self._end(replace(session, state="failed", reason=str(error)))
                raise
            self._end(replace(session, state="ready", version=version.number))
            return version, created

    def cancel(self, tenant: str, id: str) -> None:
        """Raises UnknownUpload, UploadBusy."""
        with self._lock:
            self._remove(self._get(tenant, id).id)

    def collect(self) -> int:
        """Forget what is too old, and count it. An upload that is at work is left alone.

        What cannot be removed is only logged; it is expired for everybody all the same, and tried again next time. So
        are notes that could not be written.
        """
        with self._lock:
            for id in self._unnoted - self._busy:
                with suppress(OSError):  # it was logged the first time
                    self._note(self._sessions[id])
            old = [session.id for session in self._sessions.values() if self._expired(session)]
            idle = [id for id in old if id not in self._busy]
            for id in idle:
                try:
                    self._remove(id)
                except OSError:
                    log.exception("the upload %s has expired and was not removed", id)
            return len(idle)

    def _get(self, tenant: str, id: str) -> UploadSession:
        session = self._sessions.get(id)
        if session is None or session.tenant != tenant or self._expired(session):
            raise UnknownUpload()
        return session

    def _offset(self, session: UploadSession) -> int:
        return session.size if session.state == "ready" else self._files.offset(session.id)

    def _expired(self, session: UploadSession) -> bool:
        return self._now() - session.created > self._limits.age_s

    def expires(self, session: UploadSession) -> float:
        return session.created + self._limits.age_s

    @contextmanager
    def _claimed(self, tenant: str, id: str) -> Iterator[UploadSession]:
        """One request at a time, on an upload that is not over."""
        with self._lock:
            session = self._get(tenant, id)
            if id in self._busy:
                raise UploadBusy()
            if not session.open:
                raise UploadOver(f"This upload is over: it is {session.state}. Begin a new one.")
            self._busy.add(id)
        try:
            yield session
        finally:
            with self._lock:
                self._busy.discard(id)

    def _continues(self, session: UploadSession, spec: UploadSpec) -> bool:
        same = (session.name, session.alias, session.size, session.digest)
        if spec.digest is None or not session.open or same != (spec.name, spec.alias, spec.size, spec.digest):
            return False
        return (self._files.config(session.id), self._files.eval(session.id)) == (spec.config, spec.eval)

    def _open(self) -> list[UploadSession]:
        return [session for session in self._sessions.values() if session.open]

    def _check_number(self, tenant: str) -> None:
        open = self._open()
        own = sum(session.tenant == tenant for session in open)
        if own >= self._limits.most_open:
            raise TooManyUploads(f"{own} uploads are open, which is the limit. Finish or delete some of them.")
        if len(open) >= self._limits.most_in_all:
            raise UploadsFull(len(open))

    def _check_room(self, tenant: str, size: int) -> None:
        """Room is promised before it is used, so what is yet to come counts as used."""
        open, reservations = self._open(), list(self._reservations)
        declared = sum(session.size for session in open if session.tenant == tenant)
        declared += sum(form.size for form in reservations if form.tenant == tenant)
        if declared + size > self._limits.most_bytes:
            raise TooManyUploads(
                f"The uploads under way are declared to have {declared} bytes, and this one {size}; together they may "
                f"have {self._limits.most_bytes}. Finish or delete some of them."
            )
        outstanding = sum(session.size - self._files.offset(session.id) for session in open)
        outstanding += sum(form.outstanding for form in reservations)
        if outstanding + size > self._free_bytes():
            raise OSError(errno.ENOSPC, "no room for the uploads that are under way and one more")

    def _forget_surplus(self, mine: list[UploadSession]) -> None:
        """Of those that are over, as many are remembered as may be open."""
        over = sorted((session for session in mine if not session.open), key=lambda session: session.created)
        for session in over[: max(0, len(over) - self._limits.most_open + 1)]:
            self._remove(session.id)

    def _end(self, session: UploadSession) -> None:
        """It is over, whatever the disk says to the note of it."""
        self._sessions[session.id] = session
        self._unnoted.add(session.id)
        try:
            self._note(session)
        except OSError:
            log.exception("that the upload %s is %s was not noted; it is tried again", session.id, session.state)

    def _note(self, session: UploadSession) -> None:
        """The record first, then the bytes go; after a crash in between, the next start takes them away."""
        self._files.save(session)
        self._unnoted.discard(session.id)
        self._files.drop_bytes(session.id)

    def _remove(self, id: str) -> None:
        if id in self._busy:
            raise UploadBusy()
        try:
            self._files.remove(id)
        finally:
            if not self._files.exists(id):
                del self._sessions[id]
                self._unnoted.discard(id)
