"""Bases of random weights, and the bytes that a step of one cannot do without."""

import json
from pathlib import Path

import pytest

from bench import limits, make_base, weight_shapes
from tests.support import tiny_base

SHAPE = make_base.ModelShape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96)


@pytest.fixture
def like(tmp_path: Path) -> Path:
    directory = tiny_base.write(tmp_path / "like")
    (directory / "config.json").write_text('{"eos_token_id": 2, "hidden_size": 16}')
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_a_base_has_the_shape_and_another_ones_tokenizer(tmp_path: Path, like: Path) -> None:
    base = make_base.write(SHAPE, like, tmp_path / "base")
    found = {linear.path: (linear.out_features, linear.in_features) for linear in weight_shapes.linears(base)}
    assert len(found) == 7 * 2
    assert found["model.layers.1.self_attn.q_proj"] == (128, 64)
    assert found["model.layers.1.self_attn.k_proj"] == (64, 64)
    assert found["model.layers.0.mlp.down_proj"] == (64, 96)
    assert weight_shapes.vocab_size(base) == tiny_base.VOCAB
    config = json.loads((base / "config.json").read_text())
    assert (config["hidden_size"], config["eos_token_id"], config["tie_word_embeddings"]) == (64, 2, True)
    assert (base / "tokenizer.json").read_text() == "{}"


def test_its_weights_are_bfloat16_of_the_seed(tmp_path: Path, like: Path) -> None:
    import torch
    from safetensors.torch import load_file

    first, again, other = (
        make_base.write(SHAPE, like, tmp_path / str(run), seed) / "model.safetensors"
        for run, seed in enumerate((1, 1, 2))
    )
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    tensors = load_file(first)
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    assert up.dtype is torch.bfloat16
    assert up.float().std().item() == pytest.approx(make_base.STD, rel=0.1)
    assert (tensors["model.norm.weight"] == 1).all()


def test_every_known_shape_is_whole() -> None:
    assert set(make_base.SHAPES) == set(make_base.ShapeName)
    assert all(shape.heads * shape.head == shape.hidden for shape in make_base.SHAPES.values())
    assert make_base.SHAPES[make_base.ShapeName.HALF_B].hidden == 896


def test_the_floor_is_a_sum_of_bytes(tmp_path: Path, like: Path) -> None:
    base = make_base.write(SHAPE, like, tmp_path / "base")
    layer = 64 * 128 * 2 + 64 * 64 * 2 + 64 * 96 * 3
    head = tiny_base.VOCAB * 64
    floor = limits.floor(base, rows=3, context=10, adapters=8, rank=4)
    assert floor.weights == 2 * (2 * layer + head)
    assert floor.kv == 3 * 10 * 2 * (2 * 2 * 64)
    of_one = 2 * 4 * 2 * (2 * (64 + 128) + 2 * (64 + 64) + 3 * (64 + 96))
    assert floor.adapters == 3 * of_one, "three rows hold three adapters at most"
    assert floor.seconds(1e9) == pytest.approx((floor.weights + floor.kv + floor.adapters) / 1e9)
    four_bit = limits.floor(base, rows=3, context=10, adapters=0, rank=4, weight_bytes=limits.NF4)
    assert four_bit.weights == limits.NF4 * 2 * layer + 2 * head


def test_bandwidth_is_measured() -> None:
    assert limits.read_bandwidth(megabytes=8, repeats=1) > 1e6
