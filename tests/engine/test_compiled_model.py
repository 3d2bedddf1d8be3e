"""What a step takes instead of transformers' forward pass, and when it must not."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedModel

from engine.batch import pack
from engine.compiled_layer import CompiledLayers
from engine.compiled_model import CompiledLogits, Logits, ModelLogits, logits_of
from engine.kv_cache import KVCache
from engine.scheduler import Chunk
from loader.plan import kv_spec
from tests.support.engine_rig import EngineRig
from tests.support.kernels import kernels
from tests.support.models import SHAPE, VOCAB, tiny_model_dir, tiny_tokenizer
from tests.support.sequences import sequence


def served(model: Path, root: Path) -> EngineRig:
    return EngineRig.load(model, root, dtype="bfloat16", kernels=kernels())


def way(rig: EngineRig) -> tuple[Logits, KVCache]:
    """How this model's logits are had, and a cache beside the engine's to ask with."""
    model: PreTrainedModel = rig.base.model
    layers = [module for module in model.modules() if isinstance(module, CompiledLayers)]
    cache = KVCache(kv_spec(model.config.to_dict()), 8, 4, torch.bfloat16, torch.device("cpu"))
    return logits_of(model, layers, cache, kernels()), cache


def granite(root: Path, more: Mapping[str, float]) -> Path:
    """A Llama whose config can multiply what goes into the layers and what comes out of the head."""
    model = GraniteForCausalLM(GraniteConfig(**{**SHAPE, **more})).eval()
    model.save_pretrained(root / "granite")
    tiny_tokenizer().save_pretrained(root / "granite")
    return root / "granite"


@torch.inference_mode()
@pytest.mark.parametrize("wanted", [[], [0], [0, 1, 9], list(range(10))])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_the_short_way_gives_the_same_bits(arch: str, wanted: list[int], tmp_path: Path) -> None:
    rig = served(tiny_model_dir(arch, tmp_path), tmp_path)
    short, cache = way(rig)
    assert isinstance(short, CompiledLogits)
    decoding, reading = (
        sequence(name, prompt=range(9), blocks=blocks) for name, blocks in (("a", [1, 4, 2]), ("b", [3, 6, 5]))
    )
    paged = pack([Chunk(decoding, 8, 1), Chunk(reading, 0, 9)], cache, torch.device("cpu"), kernels())
    ids, positions = [7, *range(30, 39)], [8, *range(9)]
    want = ModelLogits(rig.base.model)(ids, positions, wanted, paged)
    got = short(ids, positions, wanted, paged)
    assert got.shape == (len(wanted), VOCAB) and torch.equal(want, got)
    rig.close()


@pytest.mark.parametrize("more", [{"logits_scaling": 4.0}, {"embedding_multiplier": 3.0}])
def test_a_model_that_does_more_goes_its_own_way(more: dict[str, float], tmp_path: Path) -> None:
    rig = served(granite(tmp_path, more), tmp_path)
    assert any(isinstance(module, CompiledLayers) for module in rig.base.model.modules()), "its layers are like Llama's"
    assert isinstance(way(rig)[0], ModelLogits)
    rig.close()
