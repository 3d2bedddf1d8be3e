"""What a step takes instead of transformers' forward pass, and when it must not."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import GraniteConfig, GraniteForCausalLM, Ministral3Config, Ministral3ForCausalLM, PreTrainedModel

from engine.batch import pack
from engine.compiled_attention import CompiledAttention
from engine.compiled_layer import CompiledLayers
from engine.compiled_model import Logits, ModelLogits, ShortLogits, logits_of
from engine.runner import ModelRunner
from engine.scheduler import Chunk
from tests.support.engine_rig import EngineRig
from tests.support.kernels import kernels
from tests.support.models import SHAPE, VOCAB, tiny_model_dir, tiny_tokenizer
from tests.support.sequences import sequence


def served(model: Path, root: Path) -> EngineRig:
    return EngineRig.load(model, root, dtype="bfloat16", kernels=kernels())


def runner_of(rig: EngineRig) -> ModelRunner:
    return cast(ModelRunner, rig.engine._runner)


def saved(model: PreTrainedModel, directory: Path) -> Path:
    model.eval().save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@torch.inference_mode()
@pytest.mark.parametrize("wanted", [[], [0], [0, 1, 9], list(range(10))])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_the_short_way_is_taken_and_gives_the_same_bits(arch: str, wanted: list[int], tmp_path: Path) -> None:
    rig = served(tiny_model_dir(arch, tmp_path), tmp_path)
    runner = runner_of(rig)
    assert isinstance(runner._logits, ShortLogits)
    decoding = sequence("a", prompt=range(9), blocks=[1, 4, 2])
    reading = sequence("b", prompt=range(9), blocks=[3, 6, 5])
    chunks = [Chunk(decoding, 8, 1), Chunk(reading, 0, 9)]
    paged = pack(chunks, runner._cache, torch.device("cpu"), kernels())
    ids, positions = [7, *range(30, 39)], [8, *range(9)]
    want = ModelLogits(rig.base.model)(ids, positions, wanted, paged)
    got = runner._logits(ids, positions, wanted, paged)
    assert got.shape == (len(wanted), VOCAB) and torch.equal(want, got)
    rig.close()


@pytest.mark.parametrize("more", [{"logits_scaling": 4.0}, {"embedding_multiplier": 3.0}])
def test_a_model_that_does_more_goes_its_own_way(more: Mapping[str, float], tmp_path: Path) -> None:
    """Granite's layers may be Llama's, while what goes into them or comes out of its head is multiplied."""
    rig = served(saved(GraniteForCausalLM(GraniteConfig(**{**SHAPE, **more})), tmp_path / "granite"), tmp_path)
    assert any(isinstance(module, CompiledLayers) for module in rig.base.model.modules())
    assert isinstance(runner_of(rig)._logits, ModelLogits)
    rig.close()


class OtherwiseForSome:
    """A model that gives other logits where those of some rows are wanted, and is the one it wraps otherwise."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *, input_ids: Tensor, logits_to_keep: Tensor, **inputs: Any) -> SimpleNamespace:
        output = self._model(input_ids=input_ids, logits_to_keep=logits_to_keep, **inputs)
        some = len(logits_to_keep) < input_ids.shape[1]
        return SimpleNamespace(logits=output.logits * 2 if some else output.logits)


def test_the_trial_is_of_some_rows_and_of_all(tmp_path: Path) -> None:
    rig = served(tiny_model_dir("llama", tmp_path), tmp_path)
    runner, model = runner_of(rig), rig.base.model

    def way(one: object) -> Logits:
        return logits_of(cast(PreTrainedModel, one), runner._layers, runner._cache, kernels())

    assert isinstance(way(model), ShortLogits) and isinstance(way(OtherwiseForSome(model)), ModelLogits)
    rig.close()


@pytest.mark.parametrize("far", [256, 100_000])
def test_what_a_model_does_to_far_positions_alone_is_seen(far: int, tmp_path: Path) -> None:
    """Ministral 3 scales its queries by their positions, from the trained length on. Of 512 positions, some are."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}
    config = Ministral3Config(**{**SHAPE, "rope_parameters": {**rope, "original_max_position_embeddings": far}})
    rig = served(saved(Ministral3ForCausalLM(config), tmp_path / "ministral"), tmp_path)
    replaced = any(isinstance(module, CompiledAttention) for module in rig.base.model.modules())
    assert replaced == (far > 512)
    rig.close()
