"""Training a reward model, which scores the preferred answer of each pair higher (Bradley-Terry).

Owns the call of trl's RewardTrainer. `training/reward_model.py` writes and reads the result.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from datasets import Dataset
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from training.data.examples import Pair
from training.reward_model import RewardModel, padding_id
from training.trainers.common import Job, Outcome, constructing_trainer, fit, optimizers, trainer_arguments


def train(job: Job) -> Outcome:
    """Train `job.model`, a sequence classifier, in place.

    Adds `heldout_accuracy` to the metrics: the share of held-out pairs whose preferred answer has the higher score.
    """
    heldout = cast(Sequence[Pair], job.prepared.heldout.examples)
    with constructing_trainer(job):
        trainer = RewardTrainer(
            model=job.model,
            args=_config(job),
            data_collator=DataCollatorForPreference(pad_token_id=padding_id(job.loaded)),
            train_dataset=_dataset(cast(Sequence[Pair], job.prepared.train.examples)),
            eval_dataset=_dataset(heldout) if heldout else None,
            processing_class=job.loaded.tokenizer,
            optimizers=optimizers(job),
        )
        scorer = RewardModel(job.model, job.loaded, job.config.steps.micro_batch)
    outcome = fit(trainer, job)
    if not heldout:
        return outcome
    return replace(outcome, metrics={**outcome.metrics, "heldout_accuracy": pairwise_accuracy(scorer, heldout)})


def pairwise_accuracy(scorer: RewardModel, pairs: Sequence[Pair]) -> float:
    """The share of pairs whose preferred answer has the higher score; equal scores are misses."""
    chosen = scorer.score([pair.prompt_ids + pair.chosen_ids for pair in pairs])
    rejected = scorer.score([pair.prompt_ids + pair.rejected_ids for pair in pairs])
    return sum(better > worse for better, worse in zip(chosen, rejected, strict=True)) / len(pairs)


def _config(job: Job) -> RewardConfig:
    # The data is already cut to max_tokens, and dropout is `adapter.dropout`'s decision.
    return RewardConfig(**trainer_arguments(job), max_length=None, disable_dropout=False)


def _dataset(pairs: Sequence[Pair]) -> Dataset:
    return Dataset.from_dict(
        {
            "chosen_ids": [list(pair.prompt_ids + pair.chosen_ids) for pair in pairs],
            "rejected_ids": [list(pair.prompt_ids + pair.rejected_ids) for pair in pairs],
        }
    )
