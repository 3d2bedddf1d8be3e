"""G70: a damaged or lost registry keeps the server down, and `rootstock doctor --rebuild` makes it again."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.catalog import Catalog
from adapters.errors import DatabaseUnusable
from adapters.recovery import examine, rebuild
from adapters.registry import Registry
from adapters.store import BlobStore
from server.cli import _app
from server.datadir import DataDir, DataDirInUse
from tests.support.server_rig import served, write_adapter
from tests.support.storage import damage_blob


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    """Two versions of one name, an alias, and a second name with the first one's content."""
    made = DataDir(tmp_path / "data")
    made.root.mkdir()
    with closing(Registry(made.registry_url)) as registry:
        catalog = Catalog(registry, BlobStore(made.blobs), served(), frozenset())
        for name, seed, alias in (("pirate", 0, None), ("pirate", 1, "prod"), ("sql", 0, "next")):
            catalog.add_directory(name, write_adapter(tmp_path / str(seed), seed), alias)
        catalog.set_alias("pirate", "prod", 1)
    return made


def facts(data: DataDir) -> object:
    with closing(Registry(data.registry_url)) as registry:
        return registry.every()


def doctor(data: DataDir, *flags: str) -> Result:
    return CliRunner().invoke(_app, ["doctor", "--data-dir", str(data.root), *flags])


def overwrite(registry: Path) -> None:
    registry.write_bytes(b"not a database" * 999)


def scribble(registry: Path) -> None:
    content = bytearray(registry.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    registry.write_bytes(content)


def spoil_a_page(registry: Path) -> None:
    """One that opening it does not come by."""
    content = bytearray(registry.read_bytes())
    content[-4096:] = bytes(range(256)) * 16
    registry.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "overwritten": overwrite,
    "scribbled over": scribble,
    "a page spoilt": spoil_a_page,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_g70_a_registry_is_made_again_from_what_stands_beside_the_blobs(data: DataDir, kind: str) -> None:
    before = facts(data)
    DAMAGE[kind](data.registry)
    said = doctor(data)
    assert said.exit_code == 1 and said.output.startswith("registry: ")
    said = doctor(data, "--rebuild")
    assert said.exit_code == 0 and "found again: pirate@2" in said.output
    assert facts(data) == before
    assert ("is kept as" in said.output) == (kind != "gone")
    assert doctor(data).output == "Nothing is wrong.\n"


@pytest.mark.parametrize("kind", DAMAGE)
def test_g70_the_server_does_not_start_on_it_and_removes_nothing(data: DataDir, kind: str) -> None:
    DAMAGE[kind](data.registry)
    store = BlobStore(data.blobs)
    blobs = list(store.ids())
    with pytest.raises(DatabaseUnusable, match="rootstock doctor"), closing(Registry(data.registry_url)) as registry:
        Catalog(registry, store, served(), frozenset()).sweep()
    assert list(store.ids()) == blobs and len(blobs) == 2


def test_g70_a_newer_schema_is_no_damage(data: DataDir) -> None:
    with closing(sqlite3.connect(data.registry)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    said = doctor(data)
    assert said.exit_code == 1 and "newer release" in said.output


def test_g70_a_sound_registry_is_not_rebuilt(data: DataDir) -> None:
    said = doctor(data, "--rebuild")
    assert said.exit_code == 0 and "not rebuilt" in said.output
    assert not list(data.root.glob("registry.sqlite.damaged*"))


def test_g70_damaged_orphaned_and_unfinished_bytes_are_told(data: DataDir, tmp_path: Path) -> None:
    store = BlobStore(data.blobs)
    first, second = sorted(store.ids())
    damage_blob(store, first)
    (data.blobs / "tmp" / "half").mkdir()
    found = examine(data.registry, store)
    assert (found.corrupt, found.leftovers, found.missing) == ((first,), 1, ())
    store.quarantine_if_damaged(first)
    assert examine(data.registry, store).corrupt == (first,)
    store.delete(second)
    assert {version.id for version in examine(data.registry, store).missing} == {second}


def test_g70_of_a_damaged_blob_the_name_is_still_known(data: DataDir) -> None:
    store, before = BlobStore(data.blobs), facts(data)
    for id in list(store.ids()):
        damage_blob(store, id)
        store.quarantine_if_damaged(id)
    data.registry.unlink()
    assert len(rebuild(data.registry, store).versions) == 3
    assert facts(data) == before


def test_g73_the_doctor_leaves_a_running_server_alone(data: DataDir) -> None:
    held = data.lock()
    assert isinstance(doctor(data).exception, DataDirInUse)
    os.close(held)
