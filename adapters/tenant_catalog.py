"""What one tenant sees of the catalog, in that tenant's own words.

Owns who may see and change which adapter, and how names are spelled. acme's adapter `sql` is registered as `acme/sql`;
acme calls it `sql`, and those whom acme shares it with call it `acme/sql`. What was registered without an owner, by the
server's own start or before there were keys, has a bare name; the tenant "" owns it, and others use it by that name if
it is shared with them and they have none of their own. What a tenant may not see raises what an absent one raises, and
no sooner or later: nothing is asked about it. Knows no keys and no HTTP.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from adapters.aliases import Alias
from adapters.canary import Canary
from adapters.catalog import Catalog
from adapters.condition import Condition
from adapters.errors import NotOwner, UnknownAdapter, UnknownVersion, quoted
from adapters.evaluations import EvalFile, Score
from adapters.leases import Lease
from adapters.manifest import AdapterId
from adapters.naming import check_slug, owner_of, qualified
from adapters.provenance import ServedBase
from adapters.sharing import EVERYBODY
from adapters.version import Version

T = TypeVar("T")


class TenantCatalog:
    """The catalog's methods for `tenant`, with names as that tenant spells them, going in and coming out.

    Beside what the catalog raises, changing what belongs to others raises NotOwner for what is shared with the tenant,
    else UnknownAdapter.
    """

    def __init__(self, catalog: Catalog, tenant: str = "") -> None:
        self._catalog, self._tenant = catalog, tenant

    @property
    def base(self) -> ServedBase:
        return self._catalog.base

    def check_names(self, name: str, alias: str | None) -> None:
        self._catalog.check_names(self._new(name), alias)

    def add(
        self,
        name: str,
        config: bytes,
        weights: Path,
        alias: str | None = None,
        condition: Condition | None = None,
        eval: bytes | None = None,
    ) -> tuple[Version, bool]:
        version, created = self._catalog.add(self._new(name), config, weights, alias, condition, eval)
        return self._renamed(version), created

    def add_directory(self, name: str, path: Path, alias: str | None = None) -> tuple[Version, bool]:
        version, created = self._catalog.add_directory(self._new(name), path, alias)
        return self._renamed(version), created

    def copy(
        self, source: str, name: str, alias: str | None = None, condition: Condition | None = None
    ) -> tuple[Version, bool]:
        """Only from what is the tenant's own: a share can end, and a copy would not."""
        theirs, at, selector = source.partition("@")
        full = self._own(theirs) + at + selector
        version, created = self._catalog.copy(full, self._new(name), alias, condition)
        return self._renamed(version), created

    def with_content(self, id: AdapterId) -> list[Version]:
        """The tenant's own versions with this content. What others have of it stays theirs to know."""
        return [self._renamed(one) for one in self._catalog.with_content(id) if owner_of(one.name) == self._tenant]

    def resolve(self, ref: str, key: str | None = None) -> Version:
        return self._renamed(self._ask(ref, lambda full: self._catalog.resolve(full, key)))

    def lease(self, ref: str, key: str | None = None) -> Lease:
        lease = self._ask(ref, lambda full: self._catalog.lease(full, key))
        lease.version = self._renamed(lease.version)
        return lease

    def newest(self) -> list[Version]:
        """The tenant's own and those shared with it; a name of its own hides the server's."""
        by_name: dict[str, Version] = {}
        for version in self._catalog.newest(self._tenant):
            renamed = self._renamed(version)
            if owner_of(version.name) == self._tenant or renamed.name not in by_name:
                by_name[renamed.name] = renamed
        return sorted(by_name.values(), key=lambda version: version.name)

    def versions(self, name: str) -> list[Version]:
        return [self._renamed(version) for version in self._ask(name, self._catalog.versions)]

    def own_versions(self, name: str) -> list[Version]:
        """Of an adapter that the tenant may change."""
        return [self._renamed(version) for version in self._catalog.versions(self._own(name))]

    def alias(self, name: str, alias: str) -> Alias:
        return replace(self._catalog.alias(self._own(name), alias), name=name)

    def set_alias(
        self, name: str, alias: str, number: int, condition: Condition | None = None, canary: Canary | None = None
    ) -> Version:
        return self._renamed(self._catalog.set_alias(self._own(name), alias, number, condition, canary))

    def roll_back(self, name: str, alias: str, condition: Condition | None = None) -> Version:
        return self._renamed(self._catalog.roll_back(self._own(name), alias, condition))

    def delete_alias(self, name: str, alias: str, condition: Condition | None = None) -> None:
        self._catalog.delete_alias(self._own(name), alias, condition)

    def delete(self, name: str, condition: Condition | None = None) -> bool:
        return self._catalog.delete(self._own(name), condition)

    def delete_version(self, name: str, number: int, condition: Condition | None = None) -> bool:
        return self._catalog.delete_version(self._own(name), number, condition)

    def attach_eval(self, version: Version, content: bytes) -> None:
        self._catalog.attach_eval(version.renamed(self._own(version.name)), content)

    def eval_file(self, version: Version) -> EvalFile | None:
        """An owner's alone: to share an adapter is not to share what it is measured on."""
        return self._catalog.eval_file(version.renamed(self._own(version.name)))

    def remember_score(self, version: Version, score: Score) -> None:
        self._catalog.remember_score(version.renamed(self._own(version.name)), score)

    def set_pinned(self, name: str, pinned: bool) -> Version:
        return self._renamed(self._catalog.set_pinned(self._own(name), pinned))

    def misfit(self, version: Version) -> str | None:
        return self._catalog.misfit(version)

    def share(self, name: str, tenant: str) -> None:
        """Let another tenant, or EVERYBODY, use all versions of `name`. Raises NameInvalid."""
        to = tenant if tenant == EVERYBODY else check_slug(tenant, "a tenant's name")
        self._catalog.share(self._own(name), to)

    def unshare(self, name: str, tenant: str) -> None:
        """Raises UnknownAdapter when there is no such adapter."""
        self._catalog.versions(self._own(name))
        self._catalog.unshare(self._own(name), tenant)

    def shared_with(self, name: str) -> frozenset[str]:
        """With whom a tenant's own adapter is shared. Raises UnknownAdapter."""
        self._catalog.versions(self._own(name))
        return self._catalog.shares.tenants_of(self._own(name))

    def _new(self, name: str) -> str:
        """A name to register under: this tenant's, whoever's it may look like. Raises NameInvalid."""
        prefix = qualified(self._tenant, "")
        return prefix + check_slug(name.removeprefix(prefix), "an adapter name")

    def _own(self, name: str) -> str:
        """The registry's name of what this tenant may change."""
        full = qualified(self._tenant, name) if "/" not in name else name
        if owner_of(full) == self._tenant:
            return full
        if self._catalog.shares.allows(full, self._tenant):
            raise NotOwner(f"{quoted(name)} is shared with you; only its owner changes it.")
        raise UnknownAdapter(f"There is no adapter {quoted(name)}.")

    def _ask(self, ref: str, ask: Callable[[str], T]) -> T:
        """The answer for what `ref` means to this tenant."""
        name = ref.partition("@")[0]
        allowed = self._catalog.shares.allows(name, self._tenant)
        if "/" in name:
            if allowed or owner_of(name) == self._tenant:
                return ask(ref)
            raise UnknownAdapter(f"There is no adapter {quoted(ref)}.")
        try:
            return ask(qualified(self._tenant, ref))
        except UnknownVersion:
            raise
        except UnknownAdapter:
            if not (allowed and self._tenant):
                raise
            return ask(ref)

    def _renamed(self, version: Version) -> Version:
        """`version` under the name that this tenant calls it by."""
        prefix = qualified(self._tenant, "")
        return version.renamed(version.name.removeprefix(prefix)) if prefix else version
