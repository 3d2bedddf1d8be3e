"""A base's fingerprint: what it depends on, what it does not, and when it is computed again."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from loader.digests import is_digest
from loader.errors import BaseNotFound
from loader.fingerprint import fingerprint

Arrays = Mapping[str, NDArray[Any]]
RANDOM = np.random.default_rng(3)
TENSORS: Arrays = {f"layers.{n}.weight": RANDOM.standard_normal((n + 1, 3)).astype(np.float32) for n in range(5)}


def base(folder: Path, *shards: Arrays, metadata: Mapping[str, str] | None = None) -> Path:
    """A base of these shards; one of them is the plain layout without an index."""
    folder.mkdir()
    if len(shards) == 1:
        save_file(dict(shards[0]), folder / "model.safetensors", metadata=dict(metadata or {}))
        return folder
    places: dict[str, str] = {}
    for number, shard in enumerate(shards):
        save_file(dict(shard), folder / f"model-{number}.safetensors", metadata={"format": "pt", **(metadata or {})})
        places |= dict.fromkeys(shard, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_shards_order_and_metadata_do_not_count(tmp_path: Path) -> None:
    whole = fingerprint(base(tmp_path / "whole", TENSORS), None)
    names = list(TENSORS)
    odd, even = ({name: TENSORS[name] for name in names[start::2]} for start in (1, 0))
    assert is_digest(whole)
    assert fingerprint(base(tmp_path / "sharded", odd, even), None) == whole
    assert fingerprint(base(tmp_path / "noted", TENSORS, metadata={"by": "somebody"}), None) == whole
    reordered = {name: TENSORS[name] for name in reversed(names)}
    assert fingerprint(base(tmp_path / "reordered", reordered), None) == whole


def test_every_part_of_a_tensor_counts(tmp_path: Path) -> None:
    first = next(iter(TENSORS))
    changed: dict[str, Arrays] = {
        "value": {**TENSORS, first: TENSORS[first] + np.float32(2**-20)},
        "shape": {**TENSORS, first: TENSORS[first].reshape(3, 1)},
        "dtype": {**TENSORS, first: TENSORS[first].view(np.int32)},
        "name": {("x" + name if name == first else name): array for name, array in TENSORS.items()},
        "missing": {name: array for name, array in TENSORS.items() if name != first},
    }
    found = {kind: fingerprint(base(tmp_path / kind, tensors), None) for kind, tensors in changed.items()}
    assert len({*found.values(), fingerprint(base(tmp_path / "same", TENSORS), None)}) == len(changed) + 1


def test_it_is_remembered_until_a_file_changes(tmp_path: Path) -> None:
    folder, cache = base(tmp_path / "base", TENSORS), tmp_path / "data"
    first = fingerprint(folder, cache)
    note = next((cache / "fingerprints").iterdir())
    content = json.loads(note.read_text())
    note.write_text(json.dumps(content | {"fingerprint": f"sha256:{5:064x}"}))
    assert fingerprint(folder, cache) == f"sha256:{5:064x}", "the note was not used"
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert fingerprint(folder, cache) == first
    note.write_text("{")
    assert fingerprint(folder, cache) == first
    assert [file.name for file in (cache / "fingerprints").iterdir()] == [note.name]


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    folder = base(tmp_path / "base", TENSORS)
    assert fingerprint(folder, tmp_path / "data") == fingerprint(folder, None)


def test_damage_is_told(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", TENSORS)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(BaseNotFound, match="ends within"):
        fingerprint(folder, None)
    file.write_bytes(b"no safetensors at all")
    with pytest.raises(BaseNotFound, match="Fetch the model again"):
        fingerprint(folder, None)
    twice = base(tmp_path / "twice", TENSORS, TENSORS)
    both = {"weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"}}
    (twice / "model.safetensors.index.json").write_text(json.dumps(both))
    with pytest.raises(BaseNotFound, match="twice"):
        fingerprint(twice, None)
