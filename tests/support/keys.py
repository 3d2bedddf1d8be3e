"""Keys for tests: a store in a folder, and a server that asks for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.datadir import DataDir
from server.host_check import HostCheck
from server.keys.opening import open_keys
from server.keys.ring import KeyRing
from server.keys.store import KeyStore
from server.meter import Meter
from server.principal import Scope
from tests.support.engine import FakeWorker
from tests.support.server_rig import ServerRig, make_rig

EVERY_SCOPE = tuple(Scope)


@contextmanager
def stored_keys(folder: Path) -> Iterator[KeyStore]:
    store = open_keys(DataDir(folder))
    try:
        yield store
    finally:
        store.close()


@contextmanager
def guarded_rig(
    folder: Path, meter: Meter | None = None, worker: FakeWorker | None = None, host_check: HostCheck | None = None
) -> Iterator[tuple[ServerRig, KeyStore]]:
    """A server whose callers need keys, and the store to make them with, as another process would have it open."""
    with stored_keys(folder / "keys") as own, stored_keys(folder / "keys") as others:
        made = make_rig(folder, worker, authenticator=KeyRing(own, "on"), host_check=host_check, meter=meter)
        try:
            yield made, others
        finally:
            made.registry.close()


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def headers_of(store: KeyStore, tenant: str, *scopes: Scope) -> dict[str, str]:
    """The headers of a new key; with every scope unless some are named."""
    return bearer(key_of(store, tenant, *scopes))


def key_of(store: KeyStore, tenant: str, *scopes: Scope) -> str:
    """The text of a new key; with every scope unless some are named."""
    return store.create(tenant, "default", scopes or EVERY_SCOPE)[1]
