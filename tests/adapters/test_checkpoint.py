"""The strict reader: what it derives from valid adapters, and each fault it must name in invalid ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.checkpoint import Checkpoint, read, read_directory
from adapters.errors import InvalidAdapter, UnsupportedMedia
from adapters.manifest import Kind
from tests.support.adapters import (
    ATTENTION,
    KINDS,
    MLP,
    Tensors,
    llama_shape,
    peft_config,
    write_adapter,
    write_safetensors,
)
from tests.support.broken_files import Q0, poisoned, without

SHAPE = llama_shape()


def refused(path: Path) -> str:
    with pytest.raises(InvalidAdapter) as caught:
        read_directory(path, SHAPE)
    return str(caught.value)


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(checkpoint.config)
    return value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reads_every_kind_and_dtype(tmp_path: Path, kind: Kind, dtype: str) -> None:
    found = read_directory(write_adapter(tmp_path, SHAPE, kind=kind, dtype=dtype), SHAPE)
    manifest = found.manifest
    assert (manifest.kind, manifest.dtype, manifest.rank) == (kind, dtype, 4)
    assert manifest.targets == ("q_proj", "v_proj")
    assert {graft.scaling for graft in manifest.grafts} == {8 / 4 if kind in ("lora", "dora") else 8 / 2}
    assert all(graft.dora is (kind in ("dora", "rsdora")) for graft in manifest.grafts)
    assert len(found.tensors) == 4 * (3 if kind in ("dora", "rsdora") else 2)
    assert manifest.elements == sum(int(np.prod(spec.shape)) for spec in found.tensors.values())


@pytest.mark.parametrize("rank", [1, 3, 256])
def test_reads_every_rank(tmp_path: Path, rank: int) -> None:
    assert read_directory(write_adapter(tmp_path, SHAPE, rank=rank), SHAPE).manifest.rank == rank


def test_reads_targets_ranks_and_head(tmp_path: Path) -> None:
    targets = (*ATTENTION, *MLP, "lm_head")
    found = read_directory(write_adapter(tmp_path, SHAPE, targets=targets, ranks={"down_proj": 7}), SHAPE)
    assert len(found.manifest.grafts) == len(SHAPE.linears)
    assert {graft.rank for graft in found.manifest.grafts if graft.path.endswith("down_proj")} == {7}
    assert found.manifest.rank == 7


def test_mixed_dtypes_count_as_float32(tmp_path: Path) -> None:
    def narrow(tensors: Tensors) -> Tensors:
        return tensors | {f"{Q0}.lora_A.weight": tensors[f"{Q0}.lora_A.weight"].astype(np.float16)}

    assert read_directory(write_adapter(tmp_path, SHAPE, change=narrow), SHAPE).manifest.dtype == "float32"


def test_canonical_config_says_the_same_again(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, SHAPE, kind="rsdora", targets=ATTENTION, ranks={"k_proj": 2})
    first = read_directory(path, SHAPE)
    again = read(first.config, first.weights, SHAPE)
    assert again.manifest == first.manifest
    assert again.config == first.config
    assert config_of(first)["rank_pattern"] == {f"model.layers.{n}.self_attn.k_proj": 2 for n in range(2)}


class TestIdentity:
    def test_ignores_order_base_and_training_settings(self, tmp_path: Path) -> None:
        first = read_directory(write_adapter(tmp_path / "a", SHAPE), SHAPE)
        changed = write_adapter(
            tmp_path / "b", SHAPE, base_model_name_or_path="elsewhere", lora_dropout=0.1,
            change=lambda tensors: dict(reversed(tensors.items())),
        )  # fmt: skip
        second = read_directory(changed, SHAPE)
        assert first.weights.read_bytes() != second.weights.read_bytes()
        assert second.manifest.id == first.manifest.id
        assert second.manifest.base == "elsewhere"

    @pytest.mark.parametrize("change", [{"alpha": 9}, {"kind": "rslora"}, {"seed": 1}, {"dtype": "bfloat16"}])
    def test_depends_on_what_is_computed(self, tmp_path: Path, change: dict[str, Any]) -> None:
        first = read_directory(write_adapter(tmp_path / "a", SHAPE), SHAPE)
        second = read_directory(write_adapter(tmp_path / "b", SHAPE, **change), SHAPE)
        assert second.manifest.id != first.manifest.id

    def test_recipe_never_changes(self, tmp_path: Path) -> None:
        """Ids are stored for years: if this fails, the recipe changed, and stored adapters would all look damaged."""

        def plain(tensors: Tensors) -> Tensors:
            return {name: np.arange(a.size, dtype=np.float32).reshape(a.shape) for name, a in tensors.items()}

        found = read_directory(write_adapter(tmp_path, SHAPE, change=plain), SHAPE)
        assert found.manifest.id == "sha256:7ae6e8bafe6c3ae28ef27d073e64f26f555ce50f06f201578b92e760bc8a557a"


def test_finds_non_finite_values_beyond_the_first_chunk(tmp_path: Path) -> None:
    wide = llama_shape(layers=1, hidden=8192)
    path = write_adapter(tmp_path, wide, rank=256, targets=("q_proj",))
    weights = path / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-4:] = np.float32("nan").tobytes()
    weights.write_bytes(raw)
    with pytest.raises(InvalidAdapter, match="1 elements are infinite"):
        read_directory(path, wide)


def test_lists_every_fault_of_both_files_at_once(tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        kept: Tensors = without(f"{Q0}.lora_A.weight")(poisoned(float("nan"))(tensors))
        return kept | {"model.norm.weight": np.ones(32, np.float32)}

    path = write_adapter(tmp_path, SHAPE, change=spoil, bias="all", modules_to_save=["lm_head"])
    with pytest.raises(InvalidAdapter) as caught:
        read_directory(path, SHAPE)
    text = str(caught.value)
    assert len(caught.value.faults) == 5
    for word in ("bias", "modules_to_save", "1 of 8 tensors are missing", "model.norm.weight", "infinite"):
        assert word in text


def test_many_faults_are_counted_and_the_message_stays_short(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, SHAPE, targets=(*ATTENTION, *MLP), rank=8, r=4)
    with pytest.raises(InvalidAdapter) as caught:
        read_directory(path, SHAPE)
    assert len(caught.value.faults) == 28
    assert "(28 faults)" in str(caught.value) and "and 8 more" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_wrong_base_shows_both_names(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, llama_shape(layers=3, hidden=48), base_model_name_or_path="org/other")
    message = refused(path)
    assert "'org/other'" in message and "'tiny-llama'" in message


class TestDirectory:
    def test_only_a_pickle(self, tmp_path: Path) -> None:
        write_adapter(tmp_path, SHAPE)
        (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
        with pytest.raises(UnsupportedMedia, match="safe_serialization=True"):
            read_directory(tmp_path, SHAPE)

    def test_empty(self, tmp_path: Path) -> None:
        message = refused(tmp_path)
        assert "adapter_config.json" in message and "adapter_model.safetensors" in message

    def test_other_files_do_not_matter(self, tmp_path: Path) -> None:
        write_adapter(tmp_path, SHAPE)
        (tmp_path / "README.md").write_text("A card.")
        assert read_directory(tmp_path, SHAPE).manifest.kind == "lora"


def test_no_faults_in_a_config_without_optional_fields(tmp_path: Path) -> None:
    write_adapter(tmp_path, SHAPE)
    config = {key: peft_config()[key] for key in ("peft_type", "r", "lora_alpha", "target_modules")}
    found = read(json.dumps(config).encode(), tmp_path / "adapter_model.safetensors", SHAPE)
    assert found.manifest.id == read_directory(tmp_path, SHAPE).manifest.id


def test_broken_config_does_not_hide_broken_weights(tmp_path: Path) -> None:
    write_adapter(tmp_path, SHAPE, change=poisoned(float("nan")))
    with pytest.raises(InvalidAdapter) as caught:
        read(b"[]", write_safetensors(tmp_path / "w", {"x": np.full(3, np.nan, np.float32)}), SHAPE)
    assert len(caught.value.faults) == 2
