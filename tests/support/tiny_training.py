"""Training runs so small that a test can afford many: a two-layer base, tokenized toy preferences, jobs and watches.

The toy taste is one token, FAVOURITE: an answer with more of it is the better one.
"""

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loader.source import Source
from tests.support.models import EOS, SHAPE, tiny_tokenizer
from training.base import load
from training.config import TrainConfig
from training.data.examples import Pair, Prepared, Prompt, Split
from training.graft import graft
from training.observer import Observer, SilentObserver, Step
from training.report import DataUsed
from training.trainers.common import Job
from training.trainers.weights import trainable_parameters

FAVOURITE = ord("a")
LETTERS = range(ord("b"), ord("z"))
NO_WEIGHTS = "sha256:" + 64 * "0"
"""A fingerprint for tests that look at no base."""


def two_layer_base(folder: Path, seed: int = 3) -> Source:
    """A random Llama of two layers in float32 with the byte tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": 2}, tie_word_embeddings=True))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Source("tiny", folder)


def pairs(count: int, seed: int = 0) -> tuple[Pair, ...]:
    """Preferences for answers with FAVOURITE in them."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = (*draw.choices(LETTERS, k=3), ord(":"))
        worse = draw.choices(LETTERS, k=4)
        better = list(worse)
        for place in draw.sample(range(4), k=2):
            better[place] = FAVOURITE
        made.append(Pair(prompt, (*better, EOS), (*worse, EOS)))
    return tuple(made)


def prompts(count: int, seed: int = 1) -> tuple[Prompt, ...]:
    draw = random.Random(seed)
    made = [(*draw.choices(LETTERS, k=3), ord(":")) for _ in range(count)]
    return tuple(Prompt(ids, bytes(ids).decode()) for ids in made)


def prepared(objective: str, count: int = 16) -> Prepared:
    """Toy data for an objective, a few examples of it held out."""
    used = DataUsed("toy.jsonl", "0" * 64, count, 10 * count, 0)
    if objective in ("grpo", "rloo"):
        return Prepared(Split(prompts(count), used), Split(prompts(2, 5), used), "prompts")
    return Prepared(Split(pairs(count), used), Split(pairs(6, 5), used), "preference")


def config(method: str, objective: str, reward: Path | None = None, **changes: Mapping[str, Any]) -> TrainConfig:
    """A run of three steps on the CPU in float32, looked at and saved after the second; `changes` by section."""
    values: dict[str, dict[str, Any]] = {
        "data": {"train": "toy.jsonl"},
        "adapter": {"rank": 4, "alpha": 8, "targets": ("q_proj", "down_proj"), "saved_as": "float32"},
        "optimizer": {"learning_rate": 5e-3, "warmup": 0.0},
        "steps": {"max_steps": 3, "batch": 4, "micro_batch": 2, "eval_every": 2, "save_every": 2, "seed": 1},
    }
    if objective in ("grpo", "rloo"):
        values |= {"sampling": {"completions": 2, "max_new_tokens": 2}, "reward": {"model": reward}}
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change}
    fixed = {"output": "out", "base": "tiny", "precision": "float32", "device": "cpu"}
    return TrainConfig.model_validate({**fixed, "method": method, "objective": objective, **values})


def job(told: TrainConfig, base: Source, folder: Path, observer: Observer | None = None, examples: int = 16) -> Job:
    """A job as a run hands it to a trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load(told, base)
    return Job(
        graft(loaded.model, told),
        loaded,
        prepared(told.objective, examples),
        told,
        folder,
        observer or SilentObserver(),
    )


class Gradients:
    """Which trained weights of `model` got a gradient other than zero since the last `forget`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._weights = trainable_parameters(model)
        self._reached: set[str] = set()
        for name, weight in self._weights.items():
            weight.register_post_accumulate_grad_hook(lambda weight, name=name: self._note(name, weight))

    def _note(self, name: str, weight: torch.Tensor) -> None:
        if weight.grad is not None and bool(weight.grad.any()):
            self._reached.add(name)

    def forget(self) -> None:
        self._reached.clear()

    def missed(self) -> list[str]:
        return [name for name in self._weights if name not in self._reached]


class CutAfter(SilentObserver):
    """Copies the work folder after a step, as a kill at that moment would leave it, and calls `at_evaluation` once,
    when the held-out split has been looked at for the first time."""

    def __init__(self, step: int, folder: Path, copy: Path) -> None:
        self._step, self._folder, self._copy = step, folder, copy
        self.at_evaluation: Callable[[], None] | None = None

    def step(self, step: Step) -> None:
        if step.step == self._step:
            shutil.copytree(self._folder, self._copy)

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        if self.at_evaluation is not None:
            self.at_evaluation()
            self.at_evaluation = None
