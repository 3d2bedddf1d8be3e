"""What is wrong with a data directory, and a registry made again from what stands beside the blobs.

Owns the examination and the rebuilding, both of a directory that no server uses. Knows no settings and prints nothing.
"""

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.database import Database
from adapters.dossier_files import DOSSIER_FOLDER
from adapters.errors import AdapterCorrupt, DatabaseUnusable, UnknownAdapter
from adapters.labels import Label, decode
from adapters.manifest import AdapterId, Manifest
from adapters.manifest_json import manifest_to_json
from adapters.registry import Registry
from adapters.restoring import restore
from adapters.store import BlobStore
from adapters.tables import AdapterRow, AliasRow, NameRow, Table, VersionRow
from adapters.version import Version

SUFFIXES = ("", "-wal", "-shm")
"""A SQLite database is up to three files."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`unusable` is why the registry cannot be opened, None if it can; then `missing` and `orphans` are not known.

    `missing` are versions without a blob, `orphans` blobs without a version, `corrupt` blobs whose digest is wrong.
    """

    unusable: str | None
    missing: tuple[Version, ...]
    orphans: tuple[AdapterId, ...]
    corrupt: tuple[AdapterId, ...]
    leftovers: int

    @property
    def sound(self) -> bool:
        return self == Diagnosis(None, (), (), (), 0)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """`versions` were found again. `nameless` blobs have no label that can be read, so nobody knows what they were.

    `again` is what else came back, `lost` what is known not to have, both in words.
    """

    versions: tuple[tuple[str, int], ...]
    nameless: tuple[AdapterId, ...]
    again: tuple[str, ...]
    lost: tuple[str, ...]
    kept: Path | None


def examine(registry: Path, store: BlobStore) -> Diagnosis:
    """Reads every blob. Changes nothing but an old schema, as a start would."""
    corrupt, leftovers = tuple(_corrupt(store)), len(store.temporaries())
    blobs = frozenset(store.ids()) | store.quarantined()
    if not registry.exists() and any(store.label(id) is not None for id in blobs):
        return Diagnosis("The registry is not there, but adapters are.", (), (), corrupt, leftovers)
    try:
        with closing(Registry(f"sqlite:///{registry}")) as opened:
            every, new = opened.every(), opened.is_new()
    except (DatabaseUnusable, OSError) as error:
        return Diagnosis(str(error), (), (), corrupt, leftovers)
    if new and any(store.label(id) is not None for id in blobs):
        return Diagnosis("The registry is empty, but the adapters have names.", (), (), corrupt, leftovers)
    named = {version.id for version in every}
    missing = tuple(version for version in every if version.id not in blobs)
    return Diagnosis(None, missing, tuple(sorted(blobs - named)), corrupt, leftovers)


def rebuild(registry: Path, store: BlobStore) -> Rebuilt:
    """Make the registry from what stands beside the blobs. The old one, if any, is kept beside it.

    Labels and manifests give names, numbers, aliases, times and records of the base; dossiers shares, pins,
    canaries, eval files, scores, the history of aliases, and the numbers of what was deleted. All are as they were last
    written.
    """
    found: list[tuple[Label, Manifest]] = []
    nameless = []
    for id in sorted(frozenset(store.ids()) | store.quarantined()):
        try:
            manifest = store.described(id)
            found += [(label, manifest) for label in decode(store.label(id) or b"")]
        except (AdapterCorrupt, ValueError):
            nameless.append(id)
    fresh = registry.with_name(f"{registry.name}.rebuilt")
    _remove(fresh)
    with closing(Database(f"sqlite:///{fresh}")) as database, database.writing() as session:
        for table in _rows(found):
            session.add_all(table)
            session.flush()
        restored = restore(session, store.root / DOSSIER_FOLDER)
    kept = _set_aside(registry)
    os.rename(fresh, registry)
    versions = sorted((label.name, label.number) for label, _ in found)
    return Rebuilt(tuple(versions), tuple(nameless), tuple(restored.again), tuple(restored.lost), kept)


def _corrupt(store: BlobStore) -> Iterable[AdapterId]:
    for id in store.ids():
        try:
            store.verify(id)
        except (AdapterCorrupt, UnknownAdapter):
            yield id
    yield from sorted(store.quarantined())


def _rows(found: Iterable[tuple[Label, Manifest]]) -> list[list[Table]]:
    """Table by table, none before what it refers to.

    Of two labels that claim one number or one alias, the one that was written last is right.
    """
    ordered = sorted(found, key=lambda item: item[0].written)
    versions = {(label.name, label.number): (label, manifest) for label, manifest in ordered}
    aliases = {
        (label.name, alias): AliasRow(name=label.name, alias=alias, number=label.number)
        for label, _ in ordered
        for alias in label.aliases
    }
    last: dict[str, int] = {}
    for name, number in versions:
        last[name] = max(number, last.get(name, 0))
    manifests = {manifest.id: replace(manifest, base=None) for _, manifest in versions.values()}
    return [
        [NameRow(name=name, last_number=number, pinned=False) for name, number in last.items()],
        [AdapterRow(id=id, manifest=manifest_to_json(manifest)) for id, manifest in manifests.items()],
        [_version_row(label, manifest.id) for label, manifest in versions.values()],
        [*aliases.values()],
    ]


def _version_row(label: Label, id: AdapterId) -> VersionRow:
    record = label.trained_on
    return VersionRow(
        name=label.name,
        number=label.number,
        adapter_id=id,
        base=label.base,
        base_weights=record and record.weights,
        base_quantization=record and record.quantization,
        created=label.created.replace(tzinfo=None),
    )


def _set_aside(registry: Path) -> Path | None:
    """The first free name that says what it is; None when there was nothing."""
    if not registry.exists():
        _remove(registry)  # a journal without its database would be replayed into the new one
        return None
    number = next(n for n in range(1, 10_000) if not registry.with_name(f"{registry.name}.damaged-{n}").exists())
    kept = registry.with_name(f"{registry.name}.damaged-{number}")
    for suffix in reversed(SUFFIXES):
        if (source := registry.with_name(registry.name + suffix)).exists():
            os.rename(source, kept.with_name(kept.name + suffix))
    return kept


def _remove(database: Path) -> None:
    for suffix in SUFFIXES:
        database.with_name(database.name + suffix).unlink(missing_ok=True)
