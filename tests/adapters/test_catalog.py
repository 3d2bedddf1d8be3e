"""The catalog: uploads, leases, deferred removal, sweeping. What kill -9 leaves is in tests/faults/test_kill.py."""

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import Engine
from sqlalchemy.event import listen, remove

from adapters.canary import Split
from adapters.catalog import Catalog
from adapters.errors import AliasInvalid, InvalidAdapter, NameReserved, UnknownAdapter
from adapters.manifest import AdapterId
from adapters.provenance import ServedBase
from adapters.registry import Registry
from adapters.resolved import Resolved
from adapters.store import BlobStore
from adapters.version import Version
from tests.support.adapters import adapters, llama_shape, write_adapter

SHAPE = llama_shape()
RESERVED = frozenset({"tiny-llama"})
WEIGHTS = f"sha256:{1:064x}"


class CatalogRig:
    """A catalog over a directory, and what it said it forgot."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.registry = Registry(f"sqlite:///{root / 'registry.db'}")
        self.store = BlobStore(root / "blobs")
        base = ServedBase(SHAPE, weights=lambda: WEIGHTS)
        self.catalog = Catalog(self.registry, self.store, base, RESERVED)
        self.forgotten: list[AdapterId] = []
        self.catalog.on_forgotten = self.forgotten.append

    def consistent(self) -> bool:
        return set(self.store.ids()) == self.registry.ids()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[CatalogRig]:
    built = CatalogRig(tmp_path / "data")
    yield built
    built.registry.close()


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    return list(adapters(tmp_path / "sources", SHAPE, 4))


def test_add_and_resolve(rig: CatalogRig, sources: list[Path]) -> None:
    config = (sources[0] / "adapter_config.json").read_bytes()
    version, created = rig.catalog.add("a", config, sources[0] / "adapter_model.safetensors", alias="prod")
    assert created and (version.number, version.aliases) == (1, ("prod",))
    assert rig.catalog.resolve("a@prod") == rig.catalog.resolve("a") == version
    assert rig.store.open(version.id).manifest.id == version.id
    assert rig.catalog.add_directory("a", sources[0]) == (version, False)
    assert rig.catalog.newest() == [version]
    assert rig.consistent()


def test_refusals_change_nothing(tmp_path: Path, rig: CatalogRig, sources: list[Path]) -> None:
    bad = write_adapter(tmp_path / "bad", SHAPE, bias="all")
    for name, path, alias, error in (
        ("tiny-llama", sources[0], None, NameReserved),
        ("a", sources[0], "3", AliasInvalid),
        ("a", bad, None, InvalidAdapter),
    ):
        with pytest.raises(error):
            rig.catalog.add_directory(name, path, alias)
    assert rig.catalog.newest() == [] and list(rig.store.ids()) == []


def test_delete_removes_blobs_that_nobody_shares(rig: CatalogRig, sources: list[Path]) -> None:
    shared = rig.catalog.add_directory("a", sources[0])[0].id
    alone = rig.catalog.add_directory("a", sources[1])[0].id
    rig.catalog.add_directory("b", sources[0])
    rig.catalog.delete("a")
    assert list(rig.store.ids()) == [shared] and rig.forgotten == [alone]
    rig.catalog.delete("b")
    assert list(rig.store.ids()) == [] and rig.forgotten == [alone, shared]


def test_a_lease_keeps_the_blob(rig: CatalogRig, sources: list[Path]) -> None:
    id = rig.catalog.add_directory("a", sources[0])[0].id
    with rig.catalog.lease("a") as first:
        second = rig.catalog.lease(f"a@{first.version.id}")
        rig.catalog.delete("a")
        with pytest.raises(UnknownAdapter):
            rig.catalog.lease("a")
        rig.store.verify(id)
    first.release()
    assert list(rig.store.ids()) == [id] and rig.forgotten == []
    second.release()
    assert list(rig.store.ids()) == [] and rig.forgotten == [id]


def test_uploading_again_saves_a_doomed_blob(rig: CatalogRig, sources: list[Path]) -> None:
    rig.catalog.add_directory("a", sources[0])
    lease = rig.catalog.lease("a")
    rig.catalog.delete("a")
    rig.catalog.add_directory("b", sources[0])
    lease.release()
    assert rig.consistent() and rig.forgotten == [] and len(rig.catalog.newest()) == 1


def test_a_lease_keeps_its_version_when_the_name_moves_on(rig: CatalogRig, sources: list[Path]) -> None:
    rig.catalog.add_directory("a", sources[0], alias="prod")
    with rig.catalog.lease("a@prod") as lease:
        rig.catalog.add_directory("a", sources[1], alias="prod")
        assert lease.version.number == 1
        assert rig.catalog.resolve("a@prod").number == 2


def test_pins_aliases_and_residents(rig: CatalogRig, sources: list[Path]) -> None:
    first = rig.catalog.add_directory("a", sources[0])[0]
    assert rig.catalog.set_pinned("a", True) == first
    assert rig.catalog.pinned() == [first]
    rig.catalog.set_pinned("a", False)
    assert rig.catalog.pinned() == []
    assert rig.catalog.set_alias("a", "prod", 1).aliases == ("prod",)
    rig.catalog.delete_alias("a", "prod")
    with pytest.raises(AliasInvalid):
        rig.catalog.set_alias("a", "7", 1)
    rig.catalog.remember_residents([first.id])
    assert rig.catalog.residents() == [first.id]


def test_sweep(tmp_path: Path, rig: CatalogRig, sources: list[Path]) -> None:
    lost = rig.catalog.add_directory("lost", sources[0])[0]
    kept = rig.catalog.add_directory("kept", sources[1])[0]
    orphan = rig.catalog.add_directory("orphan", sources[2])[0]
    rig.registry.delete("orphan")
    rig.store.delete(lost.id)
    (tmp_path / "data" / "blobs" / "tmp" / "half").mkdir()
    found = rig.catalog.sweep()
    assert (found.removed, found.missing, found.temporaries) == ((orphan.id,), (lost,), 1)
    assert list(rig.store.ids()) == [kept.id]


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_twenty_threads_upload_under_one_name(tmp_path: Path, rig: CatalogRig) -> None:
    sources = list(adapters(tmp_path / "many", SHAPE, 20))
    numbers: list[int] = []

    def upload(path: Path) -> None:
        numbers.append(rig.catalog.add_directory("a", path)[0].number)

    run_all([threading.Thread(target=upload, args=(path,)) for path in sources])
    assert sorted(numbers) == list(range(1, 21))
    assert rig.consistent() and len(list(rig.store.ids())) == 20


def test_d42_upload_delete_and_lease_race(rig: CatalogRig, sources: list[Path]) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(125):
                name = choose.choice("ab")
                try:
                    match choose.randrange(3):
                        case 0:
                            rig.catalog.add_directory(name, choose.choice(sources))
                        case 1:
                            rig.catalog.delete(name)
                        case _:
                            with rig.catalog.lease(name) as lease:
                                rig.store.verify(lease.version.id)
                except UnknownAdapter as error:
                    assert "There is no adapter 'a'" in str(error) or "There is no adapter 'b'" in str(error)
        except BaseException as error:
            failures.append(error)

    run_all([threading.Thread(target=work, args=(seed,)) for seed in range(8)])
    assert failures == []
    assert rig.consistent()
    assert rig.catalog.leases.idle


def test_a_resolved_reference_follows_every_change(rig: CatalogRig, sources: list[Path]) -> None:
    """What was resolved once is remembered only until somebody changes something."""
    first, _ = rig.catalog.add_directory("a", sources[0], alias="prod")
    assert rig.catalog.resolve("a") == rig.catalog.resolve("a@prod") == first
    second, _ = rig.catalog.add_directory("a", sources[1])
    assert rig.catalog.resolve("a").id == second.id
    assert rig.catalog.resolve("a@prod").id == first.id
    rig.catalog.set_alias("a", "prod", second.number)
    assert rig.catalog.resolve("a@prod").id == second.id
    rig.catalog.delete_alias("a", "prod")
    with pytest.raises(UnknownAdapter):
        rig.catalog.resolve("a@prod")
    rig.catalog.delete("a")
    with pytest.raises(UnknownAdapter):
        rig.catalog.resolve("a")


def test_a_change_leaves_what_other_names_mean(rig: CatalogRig, sources: list[Path]) -> None:
    for name, source in zip(("a", "b"), sources[:2], strict=True):
        rig.catalog.add_directory(name, source, alias="prod")
    known = {ref: rig.catalog.resolve(ref) for ref in ("a", "a@prod", "b", "b@1")}
    rig.catalog.set_alias("a", "beta", 1)
    assert all(rig.catalog.resolve(ref) is known[ref] for ref in ("b", "b@1"))
    assert rig.catalog.resolve("a").aliases == rig.catalog.resolve("a@prod").aliases == ("beta", "prod")


def test_after_a_start_no_request_waits_for_what_a_name_means(rig: CatalogRig, sources: list[Path]) -> None:
    added = [rig.catalog.add_directory("a", source)[0] for source in sources[:2]]
    again = Catalog(rig.registry, rig.store, rig.catalog.base, RESERVED)
    again.sweep()
    rig.registry.close()  # it opens anew for whoever asks
    asked: list[object] = []

    def note(*event: object) -> None:
        asked.append(event)

    listen(Engine, "before_cursor_execute", note)
    try:
        assert again.resolve("a") == added[1]
        assert asked == []
        assert again.resolve("a@1") == added[0]
        assert asked
    finally:
        remove(Engine, "before_cursor_execute", note)


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    resolved = Resolved(most=2)
    splits = {ref: Split(cast(Version, ref)) for ref in ("a", "a@1", "b", "c")}
    for ref, split in splits.items():
        assert resolved.get(ref, lambda split=split: split) is split  # type: ignore[misc]
    assert resolved.get("a@1", lambda: splits["c"]) is splits["a@1"]
    assert resolved.get("b", lambda: splits["c"]) is splits["c"], "it was not remembered"
    with resolved.changing("a"):
        pass
    assert [resolved.get("b", lambda: splits["b"]), resolved.get("b", lambda: splits["c"])] == [splits["b"]] * 2


class AheadStore(BlobStore):
    """A store that notes what is read ahead."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ahead: list[AdapterId] = []

    def read_ahead(self, id: AdapterId) -> None:
        self.ahead.append(id)
        super().read_ahead(id)


def test_what_is_leased_and_not_in_memory_is_read_ahead(tmp_path: Path, rig: CatalogRig, sources: list[Path]) -> None:
    store = AheadStore(tmp_path / "ahead")
    catalog = Catalog(rig.registry, store, rig.catalog.base, RESERVED)
    here, there = (catalog.add_directory(name, path)[0] for name, path in zip("ab", sources[:2], strict=True))
    catalog.in_memory = {here.id}.__contains__
    with catalog.lease("a"), catalog.lease("b"):
        assert store.ahead == [there.id]
    shutil.rmtree(store.path(there.id))
    with catalog.lease("b"):
        assert store.ahead == [there.id] * 2, "what is not there is told to whoever reads it"


def test_an_answer_from_before_a_change_is_not_remembered() -> None:
    """A reader that asked before a write and answers after it must not leave its answer behind."""
    resolved = Resolved()
    old, new = (Split(cast(Version, word)) for word in ("old", "new"))

    def overtaken() -> Split[Version]:
        with resolved.changing("a"):
            return old

    assert resolved.get("a", overtaken) is old
    assert resolved.get("a", lambda: new) is new
    assert resolved.get("a", overtaken) is new
