"""Adapters as the server sees them: upload, look up, lease, pin, delete.

Owns the order in which blob store and registry change, so that every row has its blob: bytes first, then the row;
rows gone first, then the bytes, once the last lease is back. Knows no engine: that hears of it through `on_forgotten`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.aliases import Alias
from adapters.canary import Canary, Split
from adapters.checkpoint import Checkpoint, Reader, read, read_directory
from adapters.condition import Condition
from adapters.dossier_files import DOSSIER_FOLDER, DossierFiles
from adapters.errors import AdapterCorrupt
from adapters.evaluations import EvalFile, Score
from adapters.labels import BlobLabels
from adapters.leases import Lease, Leases
from adapters.manifest import AdapterId
from adapters.naming import check_alias, check_name, check_slug, parse_reference
from adapters.provenance import ServedBase
from adapters.registry import Registry
from adapters.resolved import Resolved
from adapters.store import BlobStore
from adapters.sweep import Sweep, sweep
from adapters.version import Version


class Catalog:
    """Safe to use from many threads. `on_forgotten` is called, on whichever thread, after a blob was removed. The blob
    of what is leased but not `in_memory` is read from the disk ahead of whoever will ask for it.

    `reader` judges what strangers upload: `SandboxedReader` in a process of its own, `read` in the server's.
    """

    def __init__(
        self,
        registry: Registry,
        store: BlobStore,
        base: ServedBase,
        reserved: frozenset[str],
        reader: Reader = read,
    ) -> None:
        self.on_forgotten: Callable[[AdapterId], None] = lambda id: None
        self.in_memory: Callable[[AdapterId], bool] = lambda id: True
        self.base = base
        self.shares = registry.shares
        self._registry, self._store, self._reserved, self._reader = registry, store, reserved, reader
        self.leases = Leases(registry, store, lambda id: self.on_forgotten(id))
        self._resolved = Resolved()
        self._labels = BlobLabels(registry, store)
        self._dossier_files = DossierFiles(registry, store.root / DOSSIER_FOLDER, store.disk)

    def add(
        self,
        name: str,
        config: bytes,
        weights: Path,
        alias: str | None = None,
        condition: Condition | None = None,
        eval: bytes | None = None,
    ) -> tuple[Version, bool]:
        """Read strictly, store, register. False means that `name` had this content already; the alias moves anyway,
        and the eval file takes the place of one that was there.

        Raises NameInvalid, NameReserved, AliasInvalid, InvalidAdapter, UnsupportedMedia, BaseMismatch, and
        ConditionFailed when the newest version is not as `condition` asks; then nothing was changed.
        """
        self.check_names(name, alias)
        return self._register(name, self._reader(config, weights, self.base.shape), alias, condition, eval)

    def add_directory(self, name: str, path: Path, alias: str | None = None) -> tuple[Version, bool]:
        """As `add`, from a directory that PEFT wrote."""
        self.check_names(name, alias)
        return self._register(name, read_directory(path, self.base.shape, self._reader), alias)

    def copy(
        self, source: str, name: str, alias: str | None = None, condition: Condition | None = None
    ) -> tuple[Version, bool]:
        """Add to `name` what `source` refers to, as `add` does; nothing is read or stored.

        Raises what `check_names` and `lease` raise, AdapterCorrupt for what is in quarantine, and ConditionFailed.
        """
        self.check_names(name, alias)
        with self.lease(source) as lease:
            if lease.version.id in self._store.quarantined():
                raise AdapterCorrupt("The stored weights are damaged.")
            with self._changing(name, ends=alias is not None):
                return self._registry.add(name, lease.version.manifest, alias, condition)

    def resolve(self, ref: str, key: str | None = None) -> Version:
        """`name` (its newest version), `name@3`, `name@alias` or `name@sha256:…`.

        Where an alias has a canary, `key` decides, equal keys alike; without one it is where the alias points.
        Raises UnknownAdapter, UnknownVersion.
        """
        return self._resolved.get(ref, lambda: self._registry.split(parse_reference(ref))).pick(key)

    def attach_eval(self, version: Version, content: bytes) -> None:
        """Give a version its eval file, in place of one that it had. Raises UnknownAdapter when it is gone."""
        self._registry.attach_eval(version.name, version.number, content)
        self._dossier_files.follow(version.name)

    def eval_file(self, version: Version) -> EvalFile | None:
        """The one that `version` carries, if any."""
        return self._registry.eval_file(version.name, version.number)

    def remember_score(self, version: Version, score: Score) -> None:
        """Raises UnknownAdapter when the version is gone."""
        with self._resolved.changing(version.name):
            self._registry.remember_score(version.name, version.number, score)
        self._dossier_files.follow(version.name)

    def newest(self, tenant: str | None = None) -> list[Version]:
        """The newest version of each name, sorted by name; of all, or of those that `tenant` may use."""
        return self._registry.newest(tenant)

    def with_content(self, id: AdapterId) -> list[Version]:
        """Every version with this content."""
        return self._registry.with_content(id)

    def every(self) -> list[Version]:
        """Every version of every name."""
        return self._registry.every()

    def versions(self, name: str) -> list[Version]:
        """Oldest first. Raises UnknownAdapter."""
        return self._registry.versions(name)

    def set_alias(
        self, name: str, alias: str, number: int, condition: Condition | None = None, canary: Canary | None = None
    ) -> Version:
        """Move or make an alias. `canary` takes the place of any other, None ends it.

        Raises AliasInvalid, UnknownAdapter, UnknownVersion, CanaryInvalid, ConditionFailed.
        """
        check_alias(alias)
        with self._changing(name, ends=True):
            return self._registry.set_alias(name, alias, number, condition, canary)

    def roll_back(self, name: str, alias: str, condition: Condition | None = None) -> Version:
        """End the alias's canary, else put it back to where it pointed before.

        Raises UnknownAdapter, NothingToRollBack, ConditionFailed.
        """
        with self._changing(name, ends=True):
            return self._registry.roll_back(name, alias, condition)

    def alias(self, name: str, alias: str) -> Alias:
        """Raises UnknownAdapter when `name` has no such alias."""
        return self._registry.alias(name, alias)

    def splits(self) -> list[Split[Version]]:
        """Every alias that has a canary."""
        return self._registry.splits()

    def delete_alias(self, name: str, alias: str, condition: Condition | None = None) -> None:
        """Raises UnknownAdapter when `name` has no such alias, ConditionFailed."""
        with self._changing(name, ends=True):
            self._registry.delete_alias(name, alias, condition)

    def delete(self, name: str, condition: Condition | None = None) -> bool:
        """Forget a name with all its versions and aliases. Blobs go when nothing names or leases them any more.

        True while somebody has a lease that was taken under this name. Raises UnknownAdapter, ConditionFailed.
        """
        with self._changing(name, ends=True):
            unused = self._registry.delete(name, condition)
            self.shares.forget(name)
        in_use = self.leases.in_use(name)
        self.leases.remove_unused(unused)
        return in_use

    def delete_version(self, name: str, number: int, condition: Condition | None = None) -> bool:
        """As `delete`, one version that no alias points at. Raises UnknownVersion and VersionInUse too."""
        with self._changing(name, ends=True):
            unused = self._registry.delete_version(name, number, condition)
        in_use = self.leases.in_use(name, number)
        self.leases.remove_unused(unused)
        return in_use

    def set_pinned(self, name: str, pinned: bool) -> Version:
        """Ask for the newest version of `name` to stay on the device. Raises UnknownAdapter, BaseMismatch."""
        if pinned:
            self.base.check(self.resolve(name).manifest)
        version = self._registry.set_pinned(name, pinned)
        self._dossier_files.follow(name, ends=not pinned)
        return version

    def share(self, name: str, tenant: str) -> None:
        """Let `tenant`, or EVERYBODY, use all versions of `name`. Raises UnknownAdapter."""
        self.shares.share(name, tenant)
        self._dossier_files.follow(name)

    def unshare(self, name: str, tenant: str) -> None:
        """When this returns, no rebuilding of the registry shares it with `tenant` again. Raises Unsettled too."""
        self.shares.unshare(name, tenant)
        self._dossier_files.follow(name, ends=True)

    def pinned(self) -> list[Version]:
        return self._registry.pinned()

    def lease(self, ref: str, key: str | None = None) -> Lease:
        """Resolve, with `key` as there, and hold in one step.

        Raises UnknownAdapter, UnknownVersion, and BaseMismatch for a version that was added when another base was
        served.
        """
        lease = self.leases.lease(lambda: self.resolve(ref, key))
        try:
            self.base.check(lease.version.manifest)
        except BaseException:
            lease.release()
            raise
        if not self.in_memory(lease.version.id):
            self._store.read_ahead(lease.version.id)
        return lease

    def misfit(self, version: Version) -> str | None:
        """Why this base cannot serve a version that is registered, or None if it can."""
        return self.base.misfit(version.manifest)

    def remember_residents(self, ids: Iterable[AdapterId]) -> None:
        """Most recent first; for the next start."""
        self._registry.remember_residents(ids)

    def residents(self) -> list[AdapterId]:
        """Those that were resident at the last note and that this base can serve, most recent first."""
        remembered = self._registry.residents()
        served = {version.id for version in self._registry.every() if self.misfit(version) is None}
        return [id for id in remembered if id in served]

    def quarantined(self) -> frozenset[AdapterId]:
        """The blobs that were found damaged. Uploading such an adapter again repairs it."""
        return self._store.quarantined()

    def sweep(self) -> Sweep:
        """Put the disk in order after a crash. Call at start, before anything is added or leased.

        Raises DatabaseUnusable, and removes nothing, when blobs have names but the registry has never had one: it was
        lost, not emptied.
        """
        found = sweep(self._registry, self._store, self.base)
        self._resolved.know(self._registry.newest())  # so that no request waits for it
        self._labels.refresh()
        self._dossier_files.refresh()
        return found

    def check_names(self, name: str, alias: str | None) -> None:
        """Raises NameInvalid, NameReserved, AliasInvalid. An owner's name may stand before the adapter's."""
        owner, slash, bare = name.partition("/")
        if slash:
            check_slug(owner, "a tenant's name")
        check_name(bare if slash else name, self._reserved)
        if alias is not None:
            check_alias(alias)

    def _register(
        self,
        name: str,
        checkpoint: Checkpoint,
        alias: str | None,
        condition: Condition | None = None,
        eval: bytes | None = None,
    ) -> tuple[Version, bool]:
        self.base.check(checkpoint.manifest)
        with self.leases.holding(checkpoint.manifest.id):
            self._store.put(checkpoint)
            with self._changing(name, ends=alias is not None):
                return self._registry.add(name, checkpoint.manifest, alias, condition, eval)

    @contextmanager
    def _changing(self, name: str, ends: bool = False) -> Iterator[None]:
        """Around a write: what was resolved is asked for again; the name's labels and its dossier follow.

        `ends` says that it may take something away: an alias that moves ends its canary.
        """
        before = self._labels.facts_of(name)
        with self._resolved.changing(name):
            yield
        self._labels.follow(name, before)
        self._dossier_files.follow(name, ends)
