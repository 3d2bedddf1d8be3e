"""The record of the base in training: read strictly, kept by the registry, held against the base that is served."""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from safetensors.numpy import load_file, save_file
from sqlalchemy import create_engine

from adapters.catalog import Catalog
from adapters.checkpoint import read_directory
from adapters.database import MIGRATIONS
from adapters.errors import BaseMismatch, InvalidAdapter
from adapters.manifest import TrainedOn
from adapters.provenance import ServedBase
from adapters.registry import Registry
from adapters.store import BlobStore
from tests.support.adapters import llama_shape, write_adapter

SHAPE = llama_shape()
HERE, ELSEWHERE = f"sha256:{1:064x}", f"sha256:{2:064x}"


def recorded(folder: Path, metadata: Mapping[str, str], seed: int = 0) -> Path:
    """An adapter whose file carries this metadata."""
    write_adapter(folder, SHAPE, seed=seed)
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", **metadata})
    return folder


def trained(folder: Path, weights: str = HERE, quantization: str = "none", seed: int = 0) -> Path:
    return recorded(folder, {"base_weights": weights, "base_quantization": quantization}, seed)


def here(quantization: str | None = None, allow: bool = False) -> ServedBase:
    return ServedBase(SHAPE, lambda: HERE, quantization, allow)


def catalog(root: Path, base: ServedBase) -> Catalog:
    root.mkdir(exist_ok=True)
    return Catalog(Registry(f"sqlite:///{root / 'r.db'}"), BlobStore(root / "blobs"), base, frozenset({"base"}))


def test_a_record_is_read_and_the_identity_is_without_it(tmp_path: Path) -> None:
    with_it = read_directory(trained(tmp_path / "with", quantization="nf4"), SHAPE).manifest
    without = read_directory(recorded(tmp_path / "without", {"author": "somebody"}), SHAPE).manifest
    assert with_it.trained_on == TrainedOn(HERE, "nf4")
    assert without.trained_on is None
    assert with_it.id == without.id


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"base_weights": HERE}, "base_quantization"),
        ({"base_quantization": "none"}, "base_weights"),
        ({"base_weights": HERE.upper(), "base_quantization": "none"}, "64 hexadecimal digits"),
        ({"base_weights": HERE, "base_quantization": "int8"}, "none, nf4, fp4"),
        ({"base_weights": HERE + "\n", "base_quantization": "nf4"}, "64 hexadecimal digits"),
    ],
)
def test_an_odd_record_is_a_fault_among_the_others(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    folder = recorded(tmp_path / "a", metadata)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"bias": "all"}))
    with pytest.raises(InvalidAdapter) as caught:
        read_directory(folder, SHAPE)
    assert message in str(caught.value) and "bias" in str(caught.value)


def test_other_weights_are_always_refused(tmp_path: Path) -> None:
    manifest = read_directory(trained(tmp_path / "a", ELSEWHERE), SHAPE).manifest
    with pytest.raises(BaseMismatch) as caught:
        here(allow=True).check(manifest)
    for part in (HERE, ELSEWHERE, "tiny-llama", "--base"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("mine", "served", "fix"), [("none", "nf4", "without --quantization"), ("nf4", None, "--quantization nf4")]
)
def test_another_quantization_is_refused_unless_allowed(
    tmp_path: Path, mine: str, served: str | None, fix: str
) -> None:
    manifest = read_directory(trained(tmp_path / "a", quantization=mine), SHAPE).manifest
    with pytest.raises(BaseMismatch) as caught:
        here(served).check(manifest)
    for part in (f"quantization {mine}", f"quantization {served or 'none'}", fix, "--allow-quantization-mismatch"):
        assert part in str(caught.value)
    here(served, allow=True).check(manifest)


def test_the_fingerprint_is_computed_once_and_only_for_a_record(tmp_path: Path) -> None:
    asked: list[None] = []

    def weights() -> str:
        asked.append(None)
        return HERE

    base = ServedBase(SHAPE, weights)
    base.check(read_directory(write_adapter(tmp_path / "plain", SHAPE), SHAPE).manifest)
    assert not asked
    for _ in range(2):
        base.check(read_directory(trained(tmp_path / "known"), SHAPE).manifest)
    assert len(asked) == 1


def test_the_catalog_keeps_records_and_refuses_mismatches(tmp_path: Path) -> None:
    held = catalog(tmp_path / "data", here())
    version, _ = held.add_directory("a", trained(tmp_path / "mine"))
    assert version.manifest.trained_on == TrainedOn(HERE, "none")
    assert held.resolve("a@1").manifest.trained_on == TrainedOn(HERE, "none")
    with pytest.raises(BaseMismatch):
        held.add_directory("b", trained(tmp_path / "other", ELSEWHERE, seed=1))
    assert [one.name for one in held.newest()] == ["a"]


def test_the_same_content_with_a_record_brings_it_along(tmp_path: Path) -> None:
    held = catalog(tmp_path / "data", here())
    held.add_directory("a", write_adapter(tmp_path / "plain", SHAPE))
    version, created = held.add_directory("a", trained(tmp_path / "known"))
    assert not created and version.number == 1
    assert held.resolve("a").manifest.trained_on == TrainedOn(HERE, "none")


def test_what_another_base_had_taken_is_refused_and_kept(tmp_path: Path) -> None:
    first = catalog(tmp_path / "data", here())
    first.add_directory("known", trained(tmp_path / "known"))
    first.add_directory("plain", write_adapter(tmp_path / "plain", SHAPE, seed=1))
    first.set_pinned("known", True)
    first.remember_residents(version.id for version in first.newest())

    tuned = catalog(tmp_path / "data", ServedBase(SHAPE, lambda: ELSEWHERE))
    assert [(version.name, HERE in reason) for version, reason in tuned.sweep().misfits] == [("known", True)]
    with pytest.raises(BaseMismatch):
        tuned.lease("known")
    with pytest.raises(BaseMismatch):
        tuned.set_pinned("known", True)
    tuned.lease("plain").release()
    assert tuned.residents() == [tuned.resolve("plain").id]

    larger = catalog(tmp_path / "data", ServedBase(llama_shape(hidden=48), lambda: ELSEWHERE))
    assert [version.name for version, _ in larger.sweep().misfits] == ["known", "plain"]
    with pytest.raises(BaseMismatch, match="48 x 48"):
        larger.lease("plain")

    again = catalog(tmp_path / "data", here())
    assert again.sweep().misfits == ()
    again.lease("known").release()


def test_a_registry_of_the_schema_before_is_taken_over(tmp_path: Path) -> None:
    """The rows that are there have no record, and are served as they were."""
    url = f"sqlite:///{tmp_path / 'r.db'}"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(url)
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    manifest = read_directory(write_adapter(tmp_path / "a", SHAPE), SHAPE).manifest
    described = {"id": manifest.id, "kind": "lora", "rank": 4, "targets": ["q_proj"], "grafts": [], "dtype": "float32"}
    database = sqlite3.connect(tmp_path / "r.db")
    with database:
        database.execute("INSERT INTO adapters VALUES (?, ?)", (manifest.id, json.dumps(described | {"base": None})))
        database.execute("INSERT INTO names VALUES ('a', 1, 0)")
        database.execute("INSERT INTO versions VALUES ('a', 1, ?, 'tiny', '2026-01-01')", (manifest.id,))
    database.close()
    registry = Registry(url)
    (version,) = registry.every()
    assert (version.name, version.manifest.base, version.manifest.trained_on) == ("a", "tiny", None)
    registry.close()


def test_the_record_survives_what_the_store_rewrites(tmp_path: Path) -> None:
    """Stored files are canonical and carry no record: it is the version's, and two versions may differ in it."""
    held = catalog(tmp_path / "data", here(allow=True))
    held.add_directory("a", trained(tmp_path / "plain"))
    held.add_directory("b", trained(tmp_path / "nf4", quantization="nf4"))
    one, other = held.resolve("a"), held.resolve("b")
    assert one.id == other.id
    assert (one.manifest.trained_on, other.manifest.trained_on) == (TrainedOn(HERE, "none"), TrainedOn(HERE, "nf4"))
    stored = BlobStore(tmp_path / "data" / "blobs").open(one.id)
    assert stored.manifest.trained_on is None
    assert np.isfinite(next(iter(load_file(stored.weights).values()))).all()
