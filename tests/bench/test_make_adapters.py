"""Random adapters: of the base's shapes, and the same for the same seed."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from bench import make_adapters, weight_shapes
from bench.errors import BenchError
from tests.support import tiny_base


def test_only_the_linears_of_the_layers_are_found(tmp_path: Path) -> None:
    found = weight_shapes.linears(tiny_base.write(tmp_path))
    assert [linear.path.rsplit(".", 1)[-1] for linear in found].count("up_proj") == tiny_base.LAYERS
    assert len(found) == 3 * tiny_base.LAYERS
    up = next(linear for linear in found if linear.path == "model.layers.0.mlp.up_proj")
    assert (up.in_features, up.out_features) == (tiny_base.HIDDEN, tiny_base.INTERMEDIATE)
    assert weight_shapes.vocab_size(tmp_path) == tiny_base.VOCAB


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="safetensors"):
        weight_shapes.linears(tmp_path)


def test_adapters_fit_every_linear(tmp_path: Path) -> None:
    base = tiny_base.write(tmp_path / "base")
    paths = make_adapters.write(base, tmp_path / "adapters", count=2, rank=4)
    assert [path.name for path in paths] == ["a0", "a1"]
    config = json.loads((paths[0] / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (4, ["down_proj", "q_proj", "up_proj"])
    tensors = load_file(paths[0] / "adapter_model.safetensors")
    assert len(tensors) == 2 * 3 * tiny_base.LAYERS
    down = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{down}.lora_A.weight"].shape == (4, tiny_base.INTERMEDIATE)
    assert tensors[f"{down}.lora_B.weight"].shape == (tiny_base.HIDDEN, 4)
    assert all(tensor.any() for tensor in tensors.values())


def test_seeds_decide_the_bytes(tmp_path: Path) -> None:
    base = tiny_base.write(tmp_path / "base")
    weights = [
        (make_adapters.write(base, tmp_path / str(run), count=1, rank=2, seed=seed)[0] / "adapter_model.safetensors")
        for run, seed in enumerate([5, 5, 6])
    ]
    first, again, other = (path.read_bytes() for path in weights)
    assert first == again
    assert first != other


def test_a_module_that_the_base_lacks_is_refused_with_those_it_has(tmp_path: Path) -> None:
    base = tiny_base.write(tmp_path / "base")
    with pytest.raises(BenchError, match=r"no linear q_porj. It has down_proj, q_proj, up_proj"):
        make_adapters.write(base, tmp_path / "made", count=1, rank=4, modules=("q_proj", "q_porj"))
