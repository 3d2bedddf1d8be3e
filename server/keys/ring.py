"""Who a presented key belongs to, decided in memory and true to the database at every request.

Owns the check and the question whether keys are asked for at all. Knows no routes; the text of a refusal is not its
affair, and it tells nobody why a key was refused.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from hmac import compare_digest
from typing import Literal

import anyio.to_thread
import structlog

from adapters.clock import Clock
from server.keys.store import Key, KeyStore
from server.keys.token import DIGEST_BYTES, digest, id_of
from server.principal import ANYONE, Principal

Mode = Literal["auto", "on", "off"]

_log = structlog.get_logger(__name__)


class KeyRing:
    """All keys of a store. With mode `auto` they are asked for as soon as one was ever made, and for ever after."""

    def __init__(
        self,
        store: KeyStore,
        mode: Mode,
        same: Callable[[bytes, bytes], bool] = compare_digest,
        now: Callable[[], float] | None = None,
    ) -> None:
        """`now` gives seconds since 1970; a key that has expired does not live again when the clock is set back."""
        self._store, self._mode, self._same = store, mode, same
        self._seconds = now or Clock().latest
        self._changes = store.changes()
        self._nobody = secrets.token_bytes(DIGEST_BYTES)
        self._seen, self._keys = self._read()

    @property
    def required(self) -> bool:
        return self._mode == "on" or (self._mode == "auto" and bool(self._keys))

    async def authenticate(self, authorization: Sequence[str]) -> Principal | None:
        """The caller who sent these Authorization headers; None when no live key is among them.

        The database is asked whether it has changed, which reads shared memory, and is read only if it has. So a
        revocation in another process holds from the next request on.
        """
        if self._changes() != self._seen:
            await anyio.to_thread.run_sync(self._reload)
        if not self.required:
            return ANYONE
        return self._owner(_bearer(authorization), self._now())

    def _owner(self, text: str, now: datetime) -> Principal | None:
        """Whatever `text` is, one lookup, one digest and one comparison in constant time."""
        key = self._keys.get(id_of(text))
        right = self._same(digest(self._store.pepper, text), self._nobody if key is None else key.digest)
        return key.principal if right and key is not None and key.live(now) else None

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._seconds(), UTC)

    def _reload(self) -> None:
        before = self._keys
        self._seen, self._keys = self._read()
        for id, key in self._keys.items():
            if key != before.get(id):
                _log.info("key_changed", key=id, tenant=key.tenant, state=key.state(self._now()))

    def _read(self) -> tuple[int, Mapping[str, Key]]:
        seen = self._changes()  # before reading: what changes meanwhile is then read again
        return seen, {key.id: key for key in self._store.every()}


class NoKeys:
    """A server whose callers are all anyone."""

    required = False

    async def authenticate(self, authorization: Sequence[str]) -> Principal | None:
        return ANYONE


def _bearer(authorization: Sequence[str]) -> str:
    """The key in the one header (RFC 6750); "" when there is none, or more than one."""
    scheme, _, text = (authorization[0] if len(authorization) == 1 else "").partition(" ")
    return text.strip(" ") if scheme.lower() == "bearer" else ""
