"""Reinforcement learning from a reward model: sample answers, score them, make the better ones likelier.

Owns the handover to trl's GRPOTrainer (arXiv 2402.03300) and RLOOTrainer (arXiv 2402.14740). Both compare the answers
to one prompt with each other, so neither needs a value head. Knows nothing of templates or files.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from training import launched, reward_model
from training.data.examples import Prompt
from training.errors import ConfigInvalid
from training.quiet import libraries_quiet
from training.reward_model import RewardModel
from training.trainers.common import Job, Outcome, arguments, fit, making_trainer, optimizers
from training.trainers.reference import refer_to_base

Ids = list[int]
JUDGE = "eval_reward"
"""The figure that says which evaluation was best. The loss of these objectives says nothing: it stays near zero."""


class _Grpo(GRPOTrainer):
    """Takes prompts as token ids: trl would tokenize their text again, by other rules than the data's checks."""

    def _tokenize_prompts(self, prompts: list[Ids]) -> tuple[list[Ids], None, dict[str, Any]]:
        return prompts, None, {}


class _Rloo(RLOOTrainer):
    """As `_Grpo`."""

    def _tokenize_prompts(self, prompts: list[Ids]) -> tuple[list[Ids], None, dict[str, Any]]:
        return prompts, None, {}


class _Judged:
    """trl's idea of a reward function: the reward model's score of each prompt with its completion."""

    __name__ = "model"

    def __init__(self, judge: RewardModel) -> None:
        self._judge = judge

    def __call__(self, prompts: list[Ids], completion_ids: list[Ids], **unused: Any) -> list[float]:
        return self._judge.score([[*prompt, *ids] for prompt, ids in zip(prompts, completion_ids, strict=True)])


def train(job: Job) -> Outcome:
    """Train `job.model` in place; it ends with the weights of the evaluation with the highest mean reward.

    `metrics` gains `base_reward`, the mean reward on held-out prompts before the first step.
    """
    prompts = cast(Sequence[Prompt], job.prepared.train.examples)
    heldout = cast(Sequence[Prompt], job.prepared.heldout.examples)
    _check_portions(job, len(prompts))
    judge = reward_model.load(job.config, job.loaded)
    with making_trainer(job):
        options = arguments(job) | _sampling(job)
        parts: dict[str, Any] = {
            "model": job.model,
            "reward_funcs": _Judged(judge),
            "train_dataset": _dataset(prompts),
            "eval_dataset": _dataset(heldout) if heldout else None,
            "processing_class": job.loaded.tokenizer,
            "optimizers": optimizers(job),
        }
        trainer = (
            _Grpo(args=GRPOConfig(**options), **parts)
            if job.config.objective == "grpo"
            else _Rloo(args=RLOOConfig(**options), **parts)
        )
        refer_to_base(job.model)
    before = _base_reward(trainer, job) if heldout and launched.processes() == 1 else {}
    outcome = fit(trainer, job, judge=JUDGE, larger_is_better=True)
    return replace(outcome, metrics={**outcome.metrics, **before})


def _base_reward(trainer: Trainer, job: Job) -> dict[str, float]:
    """The mean reward of the base's own answers to the held-out prompts, taken once, whatever is resumed.

    The random numbers that it draws are given back: a run that is interrupted before its first checkpoint must begin
    again as an unbroken one.
    """
    note = job.folder / "base_reward.json"
    if not note.exists():
        trainer.remove_callback(PrinterCallback)
        with libraries_quiet(), torch.random.fork_rng():
            found = trainer.evaluate()[JUDGE]
        scratch = note.with_suffix(".new")
        scratch.write_text(json.dumps({"base_reward": found}), encoding="utf-8")
        scratch.replace(note)
    figures: dict[str, float] = json.loads(note.read_text(encoding="utf-8"))
    return figures


def _sampling(job: Job) -> dict[str, Any]:
    wanted = job.config.sampling
    groups = max(1, job.config.steps.micro_batch // wanted.completions)
    return {
        "num_generations": wanted.completions,
        # An evaluation takes whole groups: all answers to a prompt are compared.
        "per_device_eval_batch_size": groups * wanted.completions,
        "max_completion_length": wanted.max_new_tokens,
        "temperature": wanted.temperature,
        "beta": wanted.beta,
    }


def _check_portions(job: Job, prompts: int) -> None:
    """A step takes `batch` answers, so many prompts' worth; trl skips prompts that fill no whole step, in silence."""
    a_step = job.config.steps.batch // job.config.sampling.completions
    if prompts < a_step:
        fix = f"Give at least {a_step} prompts, or lower steps.batch to {prompts * job.config.sampling.completions}."
        raise ConfigInvalid("The data", [f"data.train: {prompts} prompts do not fill one step. {fix}"])
    if prompts % a_step:
        job.watch.note(f"{prompts % a_step} of {prompts} prompts wait in each epoch: a step takes {a_step} prompts.")


def _dataset(prompts: Sequence[Prompt]) -> Dataset:
    return Dataset.from_dict({"prompt": [list(prompt.ids) for prompt in prompts]})
