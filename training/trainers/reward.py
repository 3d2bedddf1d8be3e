"""A reward model: one number for a whole answer, higher for the preferred one of each pair (Bradley and Terry).

Owns the handover to trl's RewardTrainer. `training/reward_model.py` says what is written and how it is read.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from datasets import Dataset
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from training.data.examples import Pair
from training.reward_model import RewardModel, pad_with
from training.trainers.common import Job, Outcome, arguments, fit, making_trainer, optimizers


def train(job: Job) -> Outcome:
    """Train `job.model`, a sequence classifier, in place. `metrics` gains `heldout_accuracy`, the share of held-out
    pairs whose preferred answer has the higher score."""
    heldout = cast(Sequence[Pair], job.prepared.heldout.examples)
    with making_trainer(job):
        trainer = RewardTrainer(
            model=job.model,
            args=_config(job),
            data_collator=DataCollatorForPreference(pad_token_id=pad_with(job.loaded)),
            train_dataset=_dataset(cast(Sequence[Pair], job.prepared.train.examples)),
            eval_dataset=_dataset(heldout) if heldout else None,
            processing_class=job.loaded.tokenizer,
            optimizers=optimizers(job),
        )
        judge = RewardModel(job.model, job.loaded, job.config.steps.micro_batch)
    outcome = fit(trainer, job)
    if not heldout:
        return outcome
    return replace(outcome, metrics={**outcome.metrics, "heldout_accuracy": pairwise_accuracy(judge, heldout)})


def pairwise_accuracy(judge: RewardModel, pairs: Sequence[Pair]) -> float:
    """The share of pairs whose preferred answer has the higher score; equal scores are misses."""
    chosen = judge.score([pair.prompt_ids + pair.chosen_ids for pair in pairs])
    rejected = judge.score([pair.prompt_ids + pair.rejected_ids for pair in pairs])
    return sum(better > worse for better, worse in zip(chosen, rejected, strict=True)) / len(pairs)


def _config(job: Job) -> RewardConfig:
    # The data is cut already, and counted. `adapter.dropout` is what the config says it is.
    return RewardConfig(**arguments(job), max_length=None, disable_dropout=False)


def _dataset(pairs: Sequence[Pair]) -> Dataset:
    return Dataset.from_dict(
        {
            "chosen_ids": [list(pair.prompt_ids + pair.chosen_ids) for pair in pairs],
            "rejected_ids": [list(pair.prompt_ids + pair.rejected_ids) for pair in pairs],
        }
    )
