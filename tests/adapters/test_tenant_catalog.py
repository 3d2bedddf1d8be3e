"""One tenant's view of the catalog: its own words, what is shared with it, and nothing else, in no more time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from adapters.canary import Canary
from adapters.condition import Condition
from adapters.errors import NameInvalid, NameReserved, NotOwner, UnknownAdapter, UnknownVersion
from adapters.evaluations import Score
from adapters.naming import owner_of
from adapters.sharing import EVERYBODY
from adapters.tenant_catalog import TenantCatalog
from adapters.version import Version
from tests.adapters.test_catalog import RESERVED, SHAPE, CatalogRig
from tests.support.adapters import adapters


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[CatalogRig]:
    built = CatalogRig(tmp_path / "data")
    yield built
    built.registry.close()


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    return list(adapters(tmp_path / "sources", SHAPE, 3))


def names(catalog: TenantCatalog) -> list[str]:
    return [version.name for version in catalog.newest()]


def test_two_tenants_use_one_name_for_two_things(rig: CatalogRig, sources: list[Path]) -> None:
    acme, beta = TenantCatalog(rig.catalog, "acme"), TenantCatalog(rig.catalog, "beta")
    mine, _ = acme.add_directory("sql", sources[0], alias="prod")
    theirs, _ = beta.add_directory("sql", sources[1])
    assert (mine.name, mine.number, theirs.name, theirs.number) == ("sql", 1, "sql", 1)
    assert [version.name for version in rig.catalog.newest()] == ["acme/sql", "beta/sql"]
    for spelled in ("sql", "sql@1", "sql@prod", f"sql@{mine.id}", "acme/sql", "acme/sql@prod"):
        with acme.lease(spelled) as lease:
            assert (lease.version.id, lease.version.name) == (mine.id, "sql")
    assert acme.resolve("sql").id == mine.id and beta.resolve("sql").id == theirs.id
    acme.set_alias("sql", "next", 1)
    acme.delete_alias("sql", "next")
    with pytest.raises(UnknownVersion):
        beta.resolve("sql@prod")
    acme.delete("sql")
    assert names(acme) == [] and names(beta) == ["sql"]


def test_what_is_not_shared_is_not_there(rig: CatalogRig, sources: list[Path]) -> None:
    acme, beta = TenantCatalog(rig.catalog, "acme"), TenantCatalog(rig.catalog, "beta")
    acme.add_directory("sql", sources[0])
    for ask in (beta.resolve, beta.lease, beta.versions, beta.delete, beta.shared_with):
        for name in ("acme/sql", "acme/nothing", "sql", "nobody/sql", "acme/sql/x", "/sql", "acme/"):
            with pytest.raises(UnknownAdapter):
                ask(name)
    assert names(beta) == [] and names(acme) == ["sql"]


def test_shared_by_name_with_all_and_unshared(rig: CatalogRig, sources: list[Path]) -> None:
    acme, beta, gamma = (TenantCatalog(rig.catalog, tenant) for tenant in ("acme", "beta", "gamma"))
    acme.add_directory("sql", sources[0])
    acme.share("sql", "beta")
    assert names(beta) == ["acme/sql"] and names(gamma) == []
    acme.add_directory("sql", sources[1])
    assert beta.resolve("acme/sql").number == 2, "versions to come are shared too"
    with beta.lease("acme/sql@1") as lease:
        assert lease.version.name == "acme/sql"
    for change in (beta.delete, lambda name: beta.set_alias(name, "prod", 1), lambda name: beta.set_pinned(name, True)):
        with pytest.raises(NotOwner):
            change("acme/sql")
    acme.share("sql", EVERYBODY)
    assert acme.shared_with("sql") == {"beta", EVERYBODY} and names(gamma) == ["acme/sql"]
    acme.unshare("sql", EVERYBODY)
    acme.unshare("sql", "beta")
    acme.unshare("sql", "beta")
    assert names(beta) == names(gamma) == [] and acme.shared_with("sql") == frozenset()
    for catalog, name in ((beta, "acme/sql"), (acme, "nothing")):
        with pytest.raises(UnknownAdapter):
            catalog.share(name, "gamma")
    with pytest.raises(NameInvalid):
        acme.share("sql", "b/c")


def test_shares_go_with_the_name_and_survive_a_restart(tmp_path: Path, rig: CatalogRig, sources: list[Path]) -> None:
    acme, beta = TenantCatalog(rig.catalog, "acme"), TenantCatalog(rig.catalog, "beta")
    acme.add_directory("sql", sources[0])
    acme.share("sql", "beta")
    again = CatalogRig(tmp_path / "data")
    assert names(TenantCatalog(again.catalog, "beta")) == ["acme/sql"]
    again.registry.close()
    acme.delete("sql")
    acme.add_directory("sql", sources[0])
    assert names(beta) == [], "the new one of that name is shared with nobody"


def test_the_servers_own_are_used_by_their_bare_names(rig: CatalogRig, sources: list[Path]) -> None:
    server, acme = TenantCatalog(rig.catalog), TenantCatalog(rig.catalog, "acme")
    server.add_directory("pirate", sources[0])
    server.add_directory("private", sources[1])
    server.share("pirate", EVERYBODY)
    assert names(acme) == ["pirate"] and acme.resolve("pirate@1").name == "pirate"
    for name in ("private", "private@1"):
        with pytest.raises(UnknownAdapter):
            acme.resolve(name)
    with pytest.raises(UnknownAdapter):
        acme.delete("pirate")
    mine, _ = acme.add_directory("pirate", sources[2])
    assert [version.id for version in acme.newest()] == [mine.id], "its own hides the server's"
    assert acme.resolve("pirate").id == mine.id != server.resolve("pirate").id


def test_a_list_is_the_tenants_own_and_what_is_shared_with_it_however_names_resemble(
    rig: CatalogRig, sources: list[Path]
) -> None:
    """As if every name were looked at in turn, which the database does not do."""
    tenants = ("", "a", "a-b", "a_b", "axb", "ab", "a0", "a.b", "b")
    catalogs = {tenant: TenantCatalog(rig.catalog, tenant) for tenant in tenants}
    for tenant, catalog in catalogs.items():
        for name in ("a", "shared", f"own{len(tenant)}"):
            catalog.add_directory(name, sources[0], alias="prod")
        catalog.share("shared", "ab" if tenant else EVERYBODY)
    everything = rig.catalog.newest()
    for tenant, catalog in catalogs.items():
        mine = [
            version.name
            for version in everything
            if owner_of(version.name) == tenant or rig.catalog.shares.allows(version.name, tenant)
        ]
        assert [version.name for version in rig.catalog.newest(tenant)] == mine
        own = {name.removeprefix(f"{tenant}/") for name in mine}
        assert {version.name for version in catalog.newest()} == own
        assert all(version.aliases == ("prod",) for version in catalog.newest())
        assert len(catalog.with_content(everything[0].id)) == 3


@pytest.mark.parametrize("tenant", ["", "acme"])
def test_nobody_registers_under_anothers_name(rig: CatalogRig, sources: list[Path], tenant: str) -> None:
    catalog = TenantCatalog(rig.catalog, tenant)
    for name in ("beta/sql", "a/b/c", "/sql", "sql/"):
        with pytest.raises(NameInvalid):
            catalog.add_directory(name, sources[0])
    for name in RESERVED:
        with pytest.raises(NameReserved):
            catalog.add_directory(name, sources[0])
    assert rig.catalog.newest() == []


def test_h76_nothing_is_asked_about_what_is_hidden(rig: CatalogRig, sources: list[Path]) -> None:
    """Time, counted in statements: what another tenant has costs what nothing costs, whatever is asked or changed."""
    server, acme, beta = (TenantCatalog(rig.catalog, tenant) for tenant in ("", "acme", "beta"))
    for catalog, name in ((server, "private"), (acme, "sql")):
        for source in sources[:2]:
            version, _ = catalog.add_directory(name, source, alias="prod")
        catalog.attach_eval(version, b'{"prompt": "a", "completion": "b"}')
        catalog.set_pinned(name, True)
    beta.add_directory("mine", sources[2])
    before = rig.catalog.every(), rig.registry.pinned(), rig.catalog.splits()
    for method, ask in asks(beta, acme.resolve("sql")).items():
        for hidden, absent in (("acme/sql", "acme/sqk"), ("private", "privatf"), ("acme/sql@1", "acme/sqk@1")):
            assert cost(ask, hidden) == cost(ask, absent), (method, hidden)
    assert (rig.catalog.every(), rig.registry.pinned(), rig.catalog.splits()) == before, "nothing was changed"
    assert acme.shared_with("sql") == server.shared_with("private") == frozenset()


HARMLESS = {"base", "add", "add_directory", "check_names", "with_content", "newest", "misfit"}
"""What takes no name of what is there: new names are always the tenant's own."""


SCORE = Score("0" * 64, "tiny-base", -1.0, 0.5, 1, 1)


def asks(catalog: TenantCatalog, version: Version) -> Mapping[str, Callable[[str], object]]:
    """Each method that is given a name, by its own. `version` is one to say another name of."""
    canary = Canary(1, 0.5)
    named: dict[str, Callable[[str], object]] = {
        "resolve": catalog.resolve,
        "resolve for a key": lambda name: catalog.resolve(name, "user"),
        "lease": catalog.lease,
        "versions": catalog.versions,
        "delete": catalog.delete,
        "delete on a condition": lambda name: catalog.delete(name, Condition(frozenset({1}))),
        "share": lambda name: catalog.share(name, "gamma"),
        "share with all": lambda name: catalog.share(name, EVERYBODY),
        "unshare": lambda name: catalog.unshare(name, "gamma"),
        "shared_with": catalog.shared_with,
        "alias": lambda name: catalog.alias(name, "prod"),
        "set_alias": lambda name: catalog.set_alias(name, "prod", 1),
        "set_alias on a condition": lambda name: catalog.set_alias(name, "prod", 1, Condition(frozenset({2}))),
        "set_alias with a canary": lambda name: catalog.set_alias(name, "prod", 2, canary=canary),
        "roll_back": lambda name: catalog.roll_back(name, "prod"),
        "own_versions": catalog.own_versions,
        "delete_version": lambda name: catalog.delete_version(name, 1),
        "delete_alias": lambda name: catalog.delete_alias(name, "prod"),
        "set_pinned": lambda name: catalog.set_pinned(name, True),
        "set_pinned off": lambda name: catalog.set_pinned(name, False),
        "copy": lambda name: catalog.copy(name, "mine"),
        "copy to a new name": lambda name: catalog.copy(name, "taken", alias="prod"),
        "attach_eval": lambda name: catalog.attach_eval(version.renamed(name), b"{}"),
        "eval_file": lambda name: catalog.eval_file(version.renamed(name)),
        "remember_score": lambda name: catalog.remember_score(version.renamed(name), SCORE),
    }
    methods = {name for name in vars(TenantCatalog) if not name.startswith("_")}
    assert {method.split()[0] for method in named} == methods - HARMLESS, "a new method is asked here too"
    return named


def cost(ask: Callable[[str], object], name: str) -> list[str]:
    """The statements of an answer that has nothing to tell."""
    with seen() as found, suppress(UnknownAdapter):
        assert ask(name) is None, "of a version that is gone there is no eval file"
    return found


@contextmanager
def seen() -> Iterator[list[str]]:
    """The SQL of this process while the block runs."""
    found: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)
