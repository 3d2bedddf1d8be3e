"""The registry: numbering, aliases, deletion, durability settings, migrations, damage."""

import errno
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine
from sqlalchemy.event import listen, remove

from adapters.canary import Canary
from adapters.errors import DatabaseUnusable, UnknownAdapter, UnknownVersion
from adapters.evaluations import Score
from adapters.manifest import AdapterId, Graft, Manifest
from adapters.naming import parse_reference
from adapters.registry import Registry
from adapters.tables import Table
from adapters.version import Version


def manifest(content: int, base: str | None = "tiny") -> Manifest:
    graft = Graft("model.layers.0.self_attn.q_proj", 32, 32, 4, 2.0)
    return Manifest(AdapterId(f"sha256:{content:064x}"), "lora", 4, ("q_proj",), (graft,), "float32", base)


def url(path: Path) -> str:
    return f"sqlite:///{path / 'registry.db'}"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry(url(tmp_path))
    yield opened
    opened.close()


def resolve(registry: Registry, ref: str) -> Version:
    return registry.resolve(parse_reference(ref))


def test_versions_count_up(registry: Registry) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    first, created = registry.add("a", manifest(1))
    assert created and (first.name, first.number, first.id, first.aliases) == ("a", 1, manifest(1).id, ())
    assert first.manifest == manifest(1)
    assert before < first.created < datetime.now(UTC) + timedelta(seconds=1)
    assert registry.add("a", manifest(2))[0].number == 2
    assert [version.number for version in registry.versions("a")] == [1, 2]
    assert [version.number for version in registry.newest()] == [2]


def test_references(registry: Registry) -> None:
    for content in (1, 2, 3):
        registry.add("a", manifest(content))
    registry.set_alias("a", "prod", 2)
    assert [resolve(registry, ref).number for ref in ("a", "a@1", "a@prod", f"a@{manifest(3).id}")] == [3, 1, 2, 3]


@pytest.mark.parametrize("ref", ["a", "a@2", "a@prod", f"a@{manifest(2).id}"])
def test_one_question_finds_what_a_list_says_of_a_version(registry: Registry, ref: str) -> None:
    """With two aliases, two canaries and a score; beside it is the transaction, and whether the alias has a canary."""
    for content in (1, 2):
        registry.add("a", manifest(content))
        registry.add("b", manifest(content))
    for alias in ("prod", "beta"):
        registry.set_alias("a", alias, 2)
    for alias in ("next", "dev"):
        registry.set_alias("a", alias, 1, canary=Canary(2, 0.25))
    registry.remember_score("a", 2, Score("0" * 64, "tiny", -1.5, 0.5, 3, 9))
    registry.resolve(parse_reference("b"))  # manifests that are known are not asked for
    asked: list[str] = []

    def note(*event: object) -> None:
        asked.append(str(event[2]))

    listen(Engine, "before_cursor_execute", note)
    try:
        found = registry.split(parse_reference(ref))
    finally:
        remove(Engine, "before_cursor_execute", note)
    assert found.canary is None and found.stable == registry.versions("a")[1]
    assert found.stable.aliases == ("beta", "prod") and found.stable.canaries == (("dev", 0.25), ("next", 0.25))
    assert [text.split()[0] for text in asked] == ["BEGIN", "SELECT", *(["SELECT"] if ref == "a@prod" else [])]


@pytest.mark.parametrize("ref", ["a@2", "a@prod", f"a@{manifest(9).id}"])
def test_unknown_versions(registry: Registry, ref: str) -> None:
    registry.add("a", manifest(1))
    with pytest.raises(UnknownVersion):
        resolve(registry, ref)
    with pytest.raises(UnknownAdapter) as caught:
        resolve(registry, ref.replace("a@", "b@"))
    assert not isinstance(caught.value, UnknownVersion)


def test_the_same_content_keeps_its_version_and_moves_the_alias(registry: Registry) -> None:
    registry.add("a", manifest(1), alias="prod")
    registry.add("a", manifest(2), alias="prod")
    again, created = registry.add("a", manifest(1), alias="prod")
    assert (again.number, created, again.aliases) == (1, False, ("prod",))
    assert resolve(registry, "a").number == 2
    assert resolve(registry, "a@prod").number == 1


def test_content_is_shared_between_names_but_not_its_base(registry: Registry) -> None:
    registry.add("a", manifest(1, base="one"))
    registry.add("b", manifest(1, base="two"))
    assert [version.manifest.base for version in registry.newest()] == ["one", "two"]
    assert registry.delete("a") == []
    assert registry.delete("b") == [manifest(1).id]


def test_numbers_are_never_reused(registry: Registry) -> None:
    registry.add("a", manifest(1), alias="prod")
    registry.add("a", manifest(2))
    assert sorted(registry.delete("a")) == [manifest(1).id, manifest(2).id]
    with pytest.raises(UnknownAdapter):
        resolve(registry, "a")
    assert registry.add("a", manifest(2))[0].number == 3
    for ref in ("a@1", "a@2", "a@prod"):
        with pytest.raises(UnknownVersion):
            resolve(registry, ref)


def test_aliases(registry: Registry) -> None:
    registry.add("a", manifest(1))
    registry.add("a", manifest(2))
    assert registry.set_alias("a", "prod", 1).aliases == ("prod",)
    assert registry.set_alias("a", "beta", 1).aliases == ("beta", "prod")
    assert registry.set_alias("a", "prod", 2).aliases == ("prod",)
    with pytest.raises(UnknownVersion):
        registry.set_alias("a", "prod", 3)
    with pytest.raises(UnknownAdapter):
        registry.set_alias("b", "prod", 1)
    registry.delete_alias("a", "prod")
    with pytest.raises(UnknownAdapter):
        registry.delete_alias("a", "prod")
    assert [version.aliases for version in registry.versions("a")] == [("beta",), ()]


def test_pins_follow_the_newest_version_and_end_with_the_name(registry: Registry) -> None:
    registry.add("a", manifest(1))
    registry.add("b", manifest(2))
    assert registry.set_pinned("a", True).number == 1
    registry.add("a", manifest(3))
    assert [(version.name, version.number) for version in registry.pinned()] == [("a", 2)]
    registry.delete("a")
    registry.add("a", manifest(1))
    assert registry.pinned() == []
    with pytest.raises(UnknownAdapter):
        registry.set_pinned("c", True)


def test_residents(registry: Registry) -> None:
    for content in (1, 2, 3):
        registry.add("a", manifest(content))
    ids = [manifest(content).id for content in (3, 1, 9, 3)]
    registry.remember_residents(ids)
    assert registry.residents() == [manifest(3).id, manifest(1).id]
    registry.remember_residents([manifest(2).id])
    assert registry.residents() == [manifest(2).id]
    registry.delete("a")
    assert registry.residents() == []


def test_unknown_names(registry: Registry) -> None:
    for use in (registry.versions, registry.delete):
        with pytest.raises(UnknownAdapter):
            use("nobody")


def test_twenty_threads_number_without_gaps(registry: Registry) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda content=content: numbers.append(registry.add("a", manifest(content))[0].number))
        for content in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21))
    assert len({version.id for version in registry.versions("a")}) == 20


def test_reopening_keeps_everything(tmp_path: Path, registry: Registry) -> None:
    registry.add("a", manifest(1), alias="prod")
    registry.set_pinned("a", True)
    again = Registry(url(tmp_path))
    assert again.newest() == registry.newest()
    assert [version.name for version in again.pinned()] == ["a"]
    again.close()


def test_durability_settings(tmp_path: Path, registry: Registry) -> None:
    with registry._database.reading() as session:
        connection = session.connection()
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert found == ["wal", 2, 1, 30_000]


def test_migrations_lead_to_the_declared_tables(tmp_path: Path, registry: Registry) -> None:
    engine = create_engine(url(tmp_path))
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Table.metadata)
    engine.dispose()
    assert differences == []


def test_a_failed_write_leaves_nothing(registry: Registry) -> None:
    registry.add("a", manifest(1))
    with pytest.raises(ZeroDivisionError), registry._database.writing() as session:
        session.connection().exec_driver_sql("DELETE FROM aliases")
        session.connection().exec_driver_sql("UPDATE names SET last_number = 99")
        raise ZeroDivisionError
    assert registry.add("a", manifest(2))[0].number == 2


class TestUnusable:
    def test_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "registry.db").write_bytes(b"not a database" * 1000)
        with pytest.raises(DatabaseUnusable, match="rootstock doctor"):
            Registry(url(tmp_path))

    def test_damaged(self, tmp_path: Path) -> None:
        registry = Registry(url(tmp_path))
        for content in range(200):
            registry.add(f"a{content}", manifest(content))
        registry.close()
        file = tmp_path / "registry.db"
        raw = bytearray(file.read_bytes())
        raw[8192:-4096] = b"\xff" * (len(raw) - 12288)
        file.write_bytes(raw)
        with pytest.raises(DatabaseUnusable):
            Registry(url(tmp_path))

    def test_newer(self, tmp_path: Path) -> None:
        Registry(url(tmp_path)).close()
        connection = sqlite3.connect(tmp_path / "registry.db")
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
        connection.close()
        with pytest.raises(DatabaseUnusable, match="9999.*Upgrade"):
            Registry(url(tmp_path))


def test_a_full_disk_is_told_as_one_and_changes_nothing(registry: Registry) -> None:
    registry.add("a", manifest(1))
    with registry._database.reading() as session:  # a database that may not grow stands in for the disk
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar()
        session.connection().exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError) as caught:
        for content in range(2, 500):
            registry.add(f"adapter-{content}", manifest(content))
    assert caught.value.errno == errno.ENOSPC
    assert resolve(registry, "a@1").id == manifest(1).id
