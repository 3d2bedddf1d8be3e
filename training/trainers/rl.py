"""Reinforcement learning from a reward model: sample answers, score them, make the better ones more likely.

Owns the calls of trl's GRPOTrainer (arXiv 2402.03300) and RLOOTrainer (arXiv 2402.14740). Both compare the answers to
one prompt with each other, so neither needs a value head. Knows nothing of templates or files.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from training import launcher, reward_model
from training.atomic import write_atomically
from training.data.examples import Prompt
from training.errors import ConfigInvalid
from training.quiet import libraries_quiet
from training.reward_model import RewardModel
from training.trainers.common import Job, Outcome, constructing_trainer, fit, optimizers, trainer_arguments
from training.trainers.ref_adapter import drop_ref_adapter

Ids = list[int]
BEST_METRIC = "eval_reward"
"""Decides which evaluation was best. The loss of these objectives cannot: it stays near zero."""


class _TokenizedPrompts:
    """Takes prompts as token ids. trl would tokenize their text again, by other rules than the data's checks."""

    def _tokenize_prompts(self, prompts: list[Ids]) -> tuple[list[Ids], None, dict[str, Any]]:
        return prompts, None, {}


class _TokenizedGRPOTrainer(_TokenizedPrompts, GRPOTrainer):
    pass


class _TokenizedRLOOTrainer(_TokenizedPrompts, RLOOTrainer):
    pass


class _RewardFunction:
    """A reward model as trl's reward function: it scores each prompt together with its completion."""

    __name__ = "model"

    def __init__(self, scorer: RewardModel) -> None:
        self._scorer = scorer

    def __call__(self, prompts: list[Ids], completion_ids: list[Ids], **unused: Any) -> list[float]:
        return self._scorer.score([[*prompt, *ids] for prompt, ids in zip(prompts, completion_ids, strict=True)])


def train(job: Job) -> Outcome:
    """Train `job.model` in place, and leave the weights of the evaluation with the highest mean reward in it.

    Adds `base_reward` to the metrics: the mean reward on held-out prompts before the first step. Raises ConfigInvalid
    when the prompts do not fill one step, RewardModelInvalid.
    """
    prompts = cast(Sequence[Prompt], job.prepared.train.examples)
    heldout = cast(Sequence[Prompt], job.prepared.heldout.examples)
    _check_batch(job, len(prompts))
    scorer = reward_model.load(job.config, job.loaded)
    with constructing_trainer(job):
        options = trainer_arguments(job) | _sampling(job)
        parts: dict[str, Any] = {
            "model": job.model,
            "reward_funcs": _RewardFunction(scorer),
            "train_dataset": _dataset(prompts),
            "eval_dataset": _dataset(heldout) if heldout else None,
            "processing_class": job.loaded.tokenizer,
            "optimizers": optimizers(job),
        }
        trainer = (
            _TokenizedGRPOTrainer(args=GRPOConfig(**options), **parts)
            if job.config.objective == "grpo"
            else _TokenizedRLOOTrainer(args=RLOOConfig(**options), **parts)
        )
        drop_ref_adapter(job.model)
    before = _base_reward(trainer, job) if heldout and launcher.world_size() == 1 else {}
    outcome = fit(trainer, job, best_metric=BEST_METRIC, greater_is_better=True)
    return replace(outcome, metrics={**outcome.metrics, **before})


def _base_reward(trainer: Trainer, job: Job) -> dict[str, float]:
    """The mean reward of the base's own answers to the held-out prompts; measured once, also for a resumed run.

    The state of the random number generators is restored, so that a run that is interrupted before its first checkpoint
    repeats as an uninterrupted one.
    """
    saved = job.folder / "base_reward.json"
    if not saved.exists():
        trainer.remove_callback(PrinterCallback)
        with libraries_quiet(), torch.random.fork_rng():
            found = trainer.evaluate()[BEST_METRIC]
        write_atomically(saved, json.dumps({"base_reward": found}))
    figures: dict[str, float] = json.loads(saved.read_text(encoding="utf-8"))
    return figures


def _sampling(job: Job) -> dict[str, Any]:
    sampling = job.config.sampling
    groups = max(1, job.config.steps.micro_batch // sampling.completions)
    return {
        "num_generations": sampling.completions,
        # An evaluation takes whole groups: all answers to a prompt are compared.
        "per_device_eval_batch_size": groups * sampling.completions,
        "max_completion_length": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "beta": sampling.beta,
    }


def _check_batch(job: Job, prompts: int) -> None:
    """Refuse fewer prompts than one step takes, and note those left over: trl skips both silently."""
    per_step = job.config.steps.batch // job.config.sampling.completions
    if prompts < per_step:
        fix = f"Give at least {per_step} prompts, or lower steps.batch to {prompts * job.config.sampling.completions}."
        raise ConfigInvalid("The data", [f"data.train: {prompts} prompts do not fill one step. {fix}"])
    if prompts % per_step:
        job.observer.note(
            f"{prompts % per_step} of {prompts} prompts wait in each epoch: a step takes {per_step} prompts."
        )


def _dataset(prompts: Sequence[Prompt]) -> Dataset:
    return Dataset.from_dict({"prompt": [list(prompt.ids) for prompt in prompts]})
