"""A data directory put in order at a start, after whatever ended the server before.

Owns what is removed then, and the report of what is missing, damaged or not fit for the base. It removes nothing that
has a name. A rebuilding, for which a person decides, is `recovery.py`'s.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from adapters.errors import DatabaseUnusable
from adapters.manifest import AdapterId
from adapters.provenance import ServedBase
from adapters.registry import Registry
from adapters.store import BlobStore
from adapters.version import Version


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a start found: `removed` blobs that no name points at, `missing` blobs that names do point at, and
    `corrupt` ones, which are in quarantine.

    `misfits` are the versions that the base cannot serve, each with the reason; they stay, and are refused.
    """

    removed: tuple[AdapterId, ...]
    missing: tuple[Version, ...]
    corrupt: tuple[Version, ...]
    misfits: tuple[tuple[Version, str], ...]
    temporaries: int


def sweep(registry: Registry, store: BlobStore, base: ServedBase) -> Sweep:
    """Raises DatabaseUnusable, and removes nothing, when blobs have names but the registry has never had one: it was
    lost, not emptied.
    """
    stored, corrupt, named = frozenset(store.ids()), store.quarantined(), registry.ids()
    _check_not_lost(registry, store, stored | corrupt)
    temporaries = store.clear_temporaries()
    orphans = sorted((stored | corrupt) - named)
    for id in orphans:
        store.delete(id)
    lost, every = named - stored - corrupt, registry.every()
    reasons = [(version, base.misfit(version.manifest)) for version in every]
    return Sweep(
        removed=tuple(orphans),
        missing=tuple(version for version in every if version.id in lost),
        corrupt=tuple(version for version in every if version.id in corrupt),
        misfits=tuple((version, reason) for version, reason in reasons if reason is not None),
        temporaries=temporaries,
    )


def _check_not_lost(registry: Registry, store: BlobStore, blobs: Iterable[AdapterId]) -> None:
    if registry.is_new() and any(store.label(id) is not None for id in blobs):
        raise DatabaseUnusable(
            "The registry is empty, but the adapters on disk have names: it was lost. Restore it from a backup, or "
            "stop and run `rootstock doctor --rebuild` on this data directory."
        )
