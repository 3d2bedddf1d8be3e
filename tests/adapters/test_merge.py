"""Folding an adapter in and taking it out again: the weights come back bit for bit, others never notice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from adapters.checkpoint import read_directory
from adapters.errors import InvalidAdapter
from adapters.loading import Loader
from adapters.manifest import AdapterId
from adapters.merge import fold, write_merged
from engine.sequence import SamplingParams
from loader.base import load as load_base
from loader.source import resolve
from tests.support.adapters import KINDS, write_adapter
from tests.support.engine_rig import Answer, EngineRig
from tests.support.models import VOCAB, tiny_model_dir

PROMPT = [5, 9, 17, 33, 65, 3, 1, 4, 1, 5]
TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj", "lm_head")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture
def rig(model_dir: Path, tmp_path: Path) -> Iterator[EngineRig]:
    made = EngineRig.load(model_dir, tmp_path)
    yield made
    made.close()


def merge(rig: EngineRig, adapter: AdapterId) -> None:
    """Step until the merge has happened or failed."""
    done = rig.engine.merge(adapter)
    while not done.done():
        rig.engine.step()
    done.result()


def ask(rig: EngineRig, *adapters: AdapterId | None) -> list[Answer]:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=VOCAB)
    ids = [rig.submit(PROMPT, params, adapter) for adapter in adapters]
    answers = rig.run()
    return [answers[id] for id in ids]


def table(answer: Answer) -> Tensor:
    return torch.tensor([[value for _, value in sorted(report.top)] for report in answer.logprobs])


def weights(rig: EngineRig) -> dict[str, Tensor]:
    return {name: parameter.clone() for name, parameter in rig.base.model.named_parameters()}


def test_merged_others_and_base_answer_as_before_and_the_weights_come_back(rig: EngineRig, tmp_path: Path) -> None:
    adapters: list[AdapterId | None] = [
        rig.add(write_adapter(tmp_path / kind, rig.base.shape, kind=kind, targets=TARGETS, seed=n, scale=0.3))
        for n, kind in enumerate(KINDS)
    ]
    everyone = [*adapters, None]
    before, pristine = ask(rig, *everyone), weights(rig)
    assert len({answer.tokens for answer in before}) > 2, "the adapters differ"
    for adapter in (adapters[0], adapters[2], adapters[0]):
        assert adapter is not None
        merge(rig, adapter)
        merged = ask(rig, *everyone)
        assert [a.tokens for a in merged] == [a.tokens for a in before]
        for now, then in zip(merged, before, strict=True):
            assert torch.allclose(table(now), table(then), atol=5e-4)
        assert merged[adapters.index(adapter)].tier == "merged"
        rig.engine.unmerge()
        restored = weights(rig)
        assert restored.keys() == pristine.keys()
        assert all(torch.equal(restored[name], pristine[name]) for name in pristine)
    again = ask(rig, *everyone)
    assert all(torch.allclose(table(a), table(b), atol=5e-4) for a, b in zip(again, before, strict=True))


def test_a_merge_that_overflows_is_refused_and_changes_nothing(model_dir: Path, tmp_path: Path) -> None:
    rig = EngineRig.load(model_dir, tmp_path, dtype="float16")
    huge = write_adapter(tmp_path / "huge", rig.base.shape, rank=16, alpha=4096, seed=1, scale=8.0)
    adapter, pristine = rig.add(huge), weights(rig)
    with pytest.raises(InvalidAdapter, match="unmerged"):
        merge(rig, adapter)
    assert rig.engine.merged is None and weights(rig).keys() == pristine.keys()
    rig.close()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_merged_checkpoint_is_loaded_by_stock_transformers(
    model_dir: Path, rig: EngineRig, tmp_path: Path, kind: str
) -> None:
    folder = write_adapter(tmp_path / "a", rig.base.shape, kind=kind, targets=TARGETS, scale=0.3)  # type: ignore[arg-type]
    base = load_base(resolve(str(model_dir), tmp_path), dtype="float32")
    write_merged(base, read_directory(folder, base.shape), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    (answer,) = ask(rig, rig.add(folder))
    with torch.inference_mode():
        logits = model(torch.tensor([[*PROMPT, *answer.tokens]])).logits[0, len(PROMPT) - 1 : -1]
    assert torch.allclose(table(answer), logits.log_softmax(-1), atol=1e-3)


def test_folding_is_the_formula_in_float32(rig: EngineRig, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", rig.base.shape, kind="rsdora", scale=0.3)
    loaded = Loader(torch.float32, rig.base.weight).load(read_directory(folder, rig.base.shape))
    path, part = next(iter(loaded.parts.items()))
    weight = rig.base.weight(path)
    delta = part.low.scaling * part.low.b_RO.double().T @ part.low.a_RI.double()
    assert part.gain is not None
    expected = part.gain.double()[:, None] * (weight.double() + delta)
    assert torch.allclose(fold(weight, part).double(), expected, atol=1e-5)
    assert fold(weight.bfloat16(), part).dtype == torch.bfloat16
