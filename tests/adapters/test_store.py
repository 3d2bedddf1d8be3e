"""The blob store: copies that are whole or absent, damage that is noticed, repairs by uploading again."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from adapters.checkpoint import Checkpoint, read_directory
from adapters.errors import AdapterCorrupt, InvalidAdapter, UnknownAdapter
from adapters.manifest import AdapterId, Kind
from adapters.store import BlobStore
from tests.support.adapters import KINDS, llama_shape, write_adapter

SHAPE = llama_shape()
ABSENT = AdapterId("sha256:" + "00" * 32)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return read_directory(write_adapter(tmp_path / "a", SHAPE, kind="dora"), SHAPE)


def temporaries(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "blobs" / "tmp").iterdir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip(tmp_path: Path, store: BlobStore, kind: Kind, dtype: str) -> None:
    source = read_directory(write_adapter(tmp_path / "a", SHAPE, kind=kind, dtype=dtype), SHAPE)
    id = store.put(source)
    stored = store.open(id)
    assert stored.manifest == source.manifest
    assert stored.config == source.config
    assert {name: (s.dtype, s.shape) for name, s in stored.tensors.items()} == {
        name: (s.dtype, s.shape) for name, s in source.tensors.items()
    }
    assert read_directory(store.path(id), SHAPE).manifest == source.manifest
    assert temporaries(tmp_path) == []
    store.verify(id)


def test_layout(tmp_path: Path, store: BlobStore, checkpoint: Checkpoint) -> None:
    id = store.put(checkpoint)
    digits = id.removeprefix("sha256:")
    directory = tmp_path / "blobs" / "sha256" / digits[:2] / digits
    assert store.path(id) == directory
    assert {file.name for file in directory.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    assert json.loads((directory / "adapter_config.json").read_bytes())["use_dora"] is True
    assert set(load_file(directory / "adapter_model.safetensors")) == set(checkpoint.tensors)


def test_the_same_tensors_in_any_order_are_the_same_file(tmp_path: Path, checkpoint: Checkpoint) -> None:
    other = write_adapter(tmp_path / "b", SHAPE, kind="dora", change=lambda tensors: dict(reversed(tensors.items())))
    files = []
    for root, source in (("one", checkpoint), ("two", read_directory(other, SHAPE))):
        store = BlobStore(tmp_path / root)
        files.append(store.open(store.put(source)).weights.read_bytes())
    assert files[0] == files[1]


def test_put_twice_is_one_blob(store: BlobStore, checkpoint: Checkpoint) -> None:
    assert store.put(checkpoint) == store.put(checkpoint)
    assert list(store.ids()) == [checkpoint.manifest.id]


def test_put_from_many_threads(tmp_path: Path, store: BlobStore, checkpoint: Checkpoint) -> None:
    failures: list[BaseException] = []

    def put() -> None:
        try:
            store.put(checkpoint)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=put) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and temporaries(tmp_path) == []
    store.verify(checkpoint.manifest.id)


def test_delete(tmp_path: Path, store: BlobStore, checkpoint: Checkpoint) -> None:
    id = store.put(checkpoint)
    store.delete(id)
    store.delete(id)
    assert list(store.ids()) == [] and temporaries(tmp_path) == []
    with pytest.raises(UnknownAdapter):
        store.open(id)


def test_a_file_deleted_while_open_stays_readable(store: BlobStore, checkpoint: Checkpoint) -> None:
    id = store.put(checkpoint)
    with store.open(id).weights.open("rb") as file:
        store.delete(id)
        assert len(file.read()) > 0


@pytest.mark.parametrize("id", ["sha256:../../etc", "sha256:", "x", "sha256:" + "0" * 63 + "/", "../" * 30])
def test_paths_come_from_digests_only(store: BlobStore, id: str) -> None:
    for use in (store.path, store.open, store.delete, store.verify):
        with pytest.raises(UnknownAdapter):
            use(AdapterId(id))


def test_unknown(store: BlobStore) -> None:
    for use in (store.open, store.verify):
        with pytest.raises(UnknownAdapter):
            use(ABSENT)


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "manifest.json"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_every_flipped_bit_is_found_and_repaired(
    store: BlobStore, checkpoint: Checkpoint, file: str, part: float
) -> None:
    id = store.put(checkpoint)
    target = store.path(id) / file
    flip(target, int(target.stat().st_size * part))
    with pytest.raises(AdapterCorrupt, match="Upload it again"):
        store.verify(id)
    store.put(checkpoint)
    store.verify(id)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "manifest.json"])
def test_missing_files_are_found_and_repaired(store: BlobStore, checkpoint: Checkpoint, file: str) -> None:
    id = store.put(checkpoint)
    (store.path(id) / file).unlink()
    with pytest.raises(AdapterCorrupt):
        store.open(id)
    store.put(checkpoint)
    store.verify(id)


def test_a_blob_under_another_digest_is_damaged(store: BlobStore, checkpoint: Checkpoint) -> None:
    source = store.path(store.put(checkpoint))
    target = store.path(ABSENT)
    target.parent.mkdir(exist_ok=True)
    source.rename(target)
    with pytest.raises(AdapterCorrupt):
        store.open(ABSENT)


def test_adapters_alike_are_told_apart(tmp_path: Path, store: BlobStore) -> None:
    """They are described alike but for the id, whatever a tenant calls the base."""
    first = read_directory(write_adapter(tmp_path / "1", SHAPE, seed=1), SHAPE)
    second = read_directory(write_adapter(tmp_path / "2", SHAPE, seed=2), SHAPE)
    odd = replace(second, manifest=replace(second.manifest, base=second.manifest.id))
    ids = [store.put(one) for one in (first, odd)]
    assert len({*ids}) == 2
    for _ in range(2):
        for id, one in zip(ids, (first, odd), strict=True):
            assert store.open(id).manifest == store.manifest(id) == one.manifest
    described = store.path(ids[1]) / "manifest.json"
    described.write_text(described.read_text().replace(ids[1], ids[0], 1))
    for ask in (store.open, store.manifest):
        with pytest.raises(AdapterCorrupt):
            ask(ids[1])


def test_what_changed_after_reading_is_not_stored(tmp_path: Path, store: BlobStore, checkpoint: Checkpoint) -> None:
    flip(checkpoint.weights, -1)
    with pytest.raises(InvalidAdapter, match="changed while"):
        store.put(checkpoint)
    with pytest.raises(OSError):
        store.put(replace(checkpoint, weights=tmp_path / "gone"))
    assert list(store.ids()) == [] and temporaries(tmp_path) == []


def test_leftovers_are_cleared(tmp_path: Path, store: BlobStore) -> None:
    (tmp_path / "blobs" / "tmp" / "half").mkdir()
    (tmp_path / "blobs" / "tmp" / "half" / "x").write_bytes(b"x")
    assert store.clear_temporaries() == 1
    assert temporaries(tmp_path) == []
