"""Supervised fine-tuning with every method: what learns, what is written, and that the server's reader takes it."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapters.checkpoint import read_directory
from loader.discover import shape_of
from loader.source import Source
from tests.support.models import tiny_model, tiny_model_dir
from tests.support.tiny_training import Gradients, two_layer_base
from tests.support.training import METHODS, config, job, prepared
from training.base import base_notes, load
from training.data.examples import Example, Prepared, Split
from training.export import TrainedBase, round_weights, write_adapter, write_model
from training.loss import labels, mean_loss
from training.metrics_file import MetricsFile
from training.observer import SilentObserver
from training.report import DataUsed
from training.trainers import sft
from training.trainers.weights import trainable_parameters

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

TEXT = torch.arange(97, 117).unsqueeze(0)
RECORD = TrainedBase("tiny", f"sha256:{'0' * 64}", None)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Source:
    torch.set_num_threads(1)
    return two_layer_base(tmp_path_factory.mktemp("base"))


class Forgetting(SilentObserver):
    """Forgets, at the first evaluation, which weights have had a gradient."""

    def __init__(self) -> None:
        self.gradients: Gradients | None = None

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        if self.gradients is not None and step == 2:
            self.gradients.forget()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    found: torch.Tensor = model(input_ids=TEXT, use_cache=False).logits
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_in_every_layer_and_is_written_as_it_was_trained(
    name: str, base: Source, tmp_path: Path
) -> None:
    told = config(tmp_path / "out", name)
    observer = Forgetting()
    run = job(told, base, tmp_path / "work", observer)
    observer.gradients = Gradients(run.model)
    before = {path: weight.detach().clone() for path, weight in trainable_parameters(run.model).items()}
    examples = sft.examples_of(run.prepared.train)
    ignorant = mean_loss(run.model, examples)
    outcome = sft.train(run)
    assert outcome.steps == 4 and outcome.tokens > 0
    after = trainable_parameters(run.model)
    assert all(weight.dtype == torch.float32 for weight in after.values())
    assert not [path for path, weight in after.items() if torch.equal(weight, before[path])]
    assert not observer.gradients.missed(), "an evaluation in the middle must not cut any layer off"
    learned = mean_loss(run.model, examples)
    assert learned is not None and ignorant is not None and learned < ignorant
    written = tmp_path / "written"
    written.mkdir()
    dtype = torch.float32
    round_weights(run.model, told, dtype)
    expected = logits(run.model)
    if isinstance(run.model, PeftModel):
        write_adapter(run.model, told, written, dtype, RECORD)
        fresh = load(told, base).model
        checkpoint = read_directory(written, shape_of(fresh, "tiny"))
        assert checkpoint.manifest.rank == (8 if "pissa" in name else 4)
        assert not any("lm_head" in graft.path or "embed" in graft.path for graft in checkpoint.manifest.grafts)
        found = logits(PeftModel.from_pretrained(fresh, str(written)))
    else:
        assert not isinstance(run.model, PeftModel)
        write_model(run.model, run.loaded.tokenizer, written, dtype)
        found = logits(AutoModelForCausalLM.from_pretrained(written))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not list(tmp_path.rglob("training_args.bin")), "nobody reads that pickle"


def test_a_mixture_of_experts_in_4_bits_says_what_is_not_and_its_adapter_is_read(tmp_path: Path) -> None:
    told = config(tmp_path / "out", "qlora", steps={"max_steps": 1})
    run = job(told, Source("moe", tiny_model_dir("mixtral", tmp_path)), tmp_path / "work")
    assert "experts are fused into single weights" in " ".join(base_notes(run.loaded))
    assert isinstance(run.model, PeftModel)
    write_adapter(run.model, told, tmp_path, torch.float32, RECORD)
    shape = shape_of(tiny_model("mixtral"), "moe")
    assert read_directory(tmp_path, shape).manifest.targets == ("k_proj", "o_proj", "q_proj", "v_proj")


def test_packed_examples_do_not_see_each_other(base: Source, tmp_path: Path) -> None:
    """One row of four examples teaches what a batch of the four teaches."""
    data = prepared(4, 0)
    steps = {"batch": 4, "micro_batch": 4, "max_steps": 2, "save_every": 9}
    apart = job(config(tmp_path / "a", steps=steps), base, tmp_path / "a.work", data=data)
    packed_told = config(
        tmp_path / "b", steps={**steps, "batch": 1, "micro_batch": 1}, data={"packing": True, "max_tokens": 128}
    )
    packed = job(packed_told, base, tmp_path / "b.work", data=data)
    sft.train(apart)
    sft.train(packed)
    weights = trainable_parameters(packed.model)
    for path, weight in trainable_parameters(apart.model).items():
        torch.testing.assert_close(weight, weights[path], atol=2e-4, rtol=1e-3)


def test_only_tokens_that_count_have_a_label() -> None:
    example = Example((5, 6, 7, 8), (False, False, True, True), 2, None)
    assert labels(example) == [-100, -100, 7, 8]


def test_checkpointing_changes_nothing_but_the_memory(base: Source, tmp_path: Path) -> None:
    kept = job(config(tmp_path / "a", steps={"checkpointing": False}), base, tmp_path / "a.work")
    again = job(config(tmp_path / "b", steps={"checkpointing": True}), base, tmp_path / "b.work")
    sft.train(kept)
    sft.train(again)
    for path, weight in trainable_parameters(kept.model).items():
        torch.testing.assert_close(weight, trainable_parameters(again.model)[path], atol=1e-5, rtol=1e-4)


def test_it_stops_when_nothing_gets_better_and_keeps_the_best(base: Source, tmp_path: Path) -> None:
    """Held-out text that is the opposite of what is learned gets worse from the first step on."""
    learned = Example(tuple(b"ababababab"), (True,) * 10, 0, None)
    opposite = Example(tuple(b"aaaaaaaaaa"), (True,) * 10, 0, None)
    used = DataUsed("", "", 1, 10, 0)
    data = Prepared(Split((learned,) * 8, used), Split((opposite,), used), "text")
    told = config(tmp_path / "out", steps={"max_steps": 40, "eval_every": 4, "patience": 2})
    run = job(told, base, tmp_path / "work", data=data)
    outcome = sft.train(run)
    marks = [r["eval_loss"] for r in MetricsFile(run.folder).records() if "eval_loss" in r]
    assert outcome.steps < 40
    assert marks.index(min(marks)) == len(marks) - 3, marks
    loss = mean_loss(run.model, [opposite])
    assert loss == pytest.approx(min(marks), abs=1e-4), "the weights of the best evaluation, not the last ones"
