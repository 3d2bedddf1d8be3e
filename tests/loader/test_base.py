"""Loaded bases: every architecture, the facts about it, its precisions, and its pristine weights."""

import json
from pathlib import Path

import pytest
import torch

from loader import estimate
from loader.base import Base, load
from loader.errors import UnsafeWeights, UnsupportedBase
from loader.plan import kv_spec
from loader.source import Source, resolve
from loader.suitability import max_model_len
from tests.support.kernels import kernels
from tests.support.models import ARCHITECTURES, CONFIGS, EOS, LAYERS, tiny_model, tiny_model_dir


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def loaded(arch: str, tmp: Path, dtype: str = "float32", quantization: str | None = None) -> Base:
    source = resolve(str(tiny_model_dir(arch, tmp)), tmp)
    return load(source, dtype=dtype, quantization=quantization, device="cpu")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_loads_and_is_described(arch: str, tmp: Path) -> None:
    base = loaded(arch, tmp)
    assert base.id == base.shape.base_id == arch
    assert base.shape.num_layers == LAYERS
    assert base.eos_token_ids == {EOS}
    assert base.max_model_len == 512
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert {"o_proj", "lm_head"} <= {linear.name for linear in base.shape.linears.values()}
    ids = torch.arange(24)[None]
    want: torch.Tensor = tiny_model(arch)(ids).logits
    got: torch.Tensor = base.model(ids).logits
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_kv_spec_agrees_with_the_projections(arch: str, tmp: Path) -> None:
    base = loaded(arch, tmp)
    spec = kv_spec(base.model.config.to_dict())
    assert len(spec) == LAYERS
    for path, linear in base.shape.linears.items():
        if path.endswith("k_proj") and linear.layer is not None:
            assert linear.out_features == spec[linear.layer].heads * spec[linear.layer].head_dim


@pytest.mark.parametrize("arch", ["qwen2_moe", "mixtral"])
def test_fused_experts_and_routers_are_refused_with_a_reason(arch: str, tmp: Path) -> None:
    shape = loaded(arch, tmp).shape
    assert "experts are fused" in shape.refused["model.layers.0.mlp.experts.gate_up_proj"]
    assert "router" in shape.refused["model.layers.0.mlp.gate"]
    assert "embeddings" in shape.refused["model.embed_tokens"]
    assert "model.layers.0.self_attn.q_proj" in shape.linears
    assert not shape.refused.keys() & shape.linears.keys()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_those_of_the_checkpoint(arch: str, dtype: str, tmp: Path) -> None:
    base = loaded(arch, tmp, dtype)
    reference = dict(tiny_model(arch).named_parameters(remove_duplicate=False))
    for path in base.shape.linears:
        assert torch.equal(base.weight(path), reference[f"{path}.weight"].to(base.dtype))


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_estimate_agrees_with_what_is_resident(arch: str, quantization: str | None, tmp: Path) -> None:
    source = resolve(str(tiny_model_dir(arch, tmp)), tmp)
    # With our kernels, since what bitsandbytes packs for some processors has no code books of its own.
    base = load(source, dtype="bfloat16", quantization=quantization, device="cpu", kernels=kernels())
    estimated = estimate.base_bytes(base.source.path, "bfloat16", quantization)
    assert estimated == pytest.approx(base.resident_bytes(), rel=0.02)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"dtype": "int8"}, "bfloat16"), ({"quantization": "int4"}, "nf4"), ({"device": "abacus"}, "cuda")],
)
def test_unknown_options_are_refused_with_the_choices(options: dict[str, str], word: str, tmp: Path) -> None:
    source = resolve(str(tiny_model_dir("llama", tmp)), tmp)
    with pytest.raises(UnsupportedBase, match=word):
        load(source, **{"dtype": "float32", "device": "cpu"} | options)  # type: ignore[arg-type]


def config_only(tmp_path: Path, config: dict[str, object]) -> Source:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return Source("x", tmp_path)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "t5"}, "decoder-only"),
        ({"model_type": "mamba"}, "attention"),
        ({"model_type": "qwen3_next"}, "linear_attention"),
        ({"model_type": "deepseek_v3"}, "MLA"),
        ({"model_type": "no_such_model"}, "does not know"),
    ],
)
def test_what_cannot_be_served_is_refused_before_loading(config: dict[str, object], word: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedBase, match=word):
        load(config_only(tmp_path, config), device="cpu")


def test_code_of_the_model_is_never_run(tmp_path: Path, tmp: Path) -> None:
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (tmp_path / "configuration_x.py").write_text(trap)
    auto = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "configuration_x.X"}
    with pytest.raises(UnsafeWeights, match="auto_map"):
        load(config_only(tmp_path, {"model_type": "x_by_somebody", "auto_map": auto}), device="cpu")
    native = tiny_model_dir("phi3", tmp_path)
    config = json.loads((native / "config.json").read_text())
    (native / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    (native / "configuration_x.py").write_text(trap)
    assert load(Source("phi3", native), device="cpu", dtype="float32").shape.num_layers == LAYERS
    assert not (tmp_path / "ran").exists()


def test_context_stays_where_rotary_frequencies_do_not_depend_on_the_batch() -> None:
    config = CONFIGS["llama"]()
    assert max_model_len(config) == 512
    config.rope_parameters = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 128}
    assert max_model_len(config) == 128
