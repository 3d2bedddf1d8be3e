"""From the `model` a client spells to what the engine runs: the base, or one adapter version under lease.

Owns the spellings: the base's id, `name`, `name@3`, `name@alias`, `name@sha256:…`, each also as `base:…`,
and LoRAX's `adapter_id`. Knows the catalog; knows no routes.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio.to_thread

from adapters import errors
from adapters.errors import AdapterError
from adapters.leases import Lease
from adapters.manifest import AdapterId
from adapters.tenant_catalog import TenantCatalog
from server.errors import BadRequest, ModelNotFound


@dataclass(slots=True)
class Target:
    """What a request runs on: `model` is the client's spelling, `lease` keeps the adapter's bytes while it runs."""

    model: str
    lease: Lease | None = None
    released: bool = False

    @property
    def adapter(self) -> AdapterId | None:
        return None if self.lease is None else self.lease.version.id

    @property
    def version(self) -> str:
        """What runs, as `name@version`; "" for the base."""
        return "" if self.lease is None else f"{self.lease.version.name}@{self.lease.version.number}"

    @contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Until an answer has taken the target over, an error lets go of it."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let the adapter go. Idempotent."""
        if self.lease is not None and not self.released:
            self.released = True
            self.lease.release()


def reference(model: str, adapter_id: str | None, base_id: str) -> str | None:
    """The adapter that is meant, as the catalog spells it; None for the base. Raises BadRequest on two answers."""
    named = _without_base(model, base_id)
    if adapter_id is None:
        return named
    chosen = _without_base(adapter_id, base_id)
    if named is not None and named != chosen:
        raise BadRequest("`model` and `adapter_id` name different adapters. Send one of them.", "adapter_id")
    return chosen


async def target(
    catalog: TenantCatalog, base_id: str, model: str, adapter_id: str | None = None, key: str | None = None
) -> Target:
    """Resolve and lease; `key` is what a canary's choice sticks to. The caller releases the target when the answer is
    complete.
    """
    ref = reference(model, adapter_id, base_id)
    if ref is None:
        return Target(model or base_id)
    lease = await anyio.to_thread.run_sync(_lease, catalog, base_id, ref, key)
    return Target(model if adapter_id is None else ref, lease)


def _lease(catalog: TenantCatalog, base_id: str, ref: str, key: str | None) -> Lease:
    try:
        return catalog.lease(ref, key)
    except AdapterError as error:
        raise _not_found(catalog, base_id, ref, error) from error


def _not_found(catalog: TenantCatalog, base_id: str, ref: str, error: AdapterError) -> Exception:
    """An unknown name, told with the nearest known ones; any other trouble stays what it is."""
    if not isinstance(error, errors.UnknownAdapter | errors.UnknownVersion | errors.NameInvalid | errors.AliasInvalid):
        return error
    names = [version.name for version in catalog.newest()]
    name = ref.partition("@")[0]
    if name in names:
        return ModelNotFound(f"This adapter has no such version or alias. GET /v1/adapters/{name}/versions lists them.")
    near = difflib.get_close_matches(name, [*names, base_id], n=3)
    hint = f" Close to it: {', '.join(near)}." if near else ""
    return ModelNotFound(f"The model does not exist here.{hint} GET /v1/models lists the base and all adapters.")


def _without_base(spelling: str, base_id: str) -> str | None:
    if spelling in ("", base_id):
        return None
    return spelling.removeprefix(f"{base_id}:")
