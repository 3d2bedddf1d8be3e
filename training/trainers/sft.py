"""Supervised fine-tuning (sft) on tokenized examples, each token marked as counting in the loss or not.

Owns the call of trl's SFTTrainer. Knows nothing of templates or files.
"""

from collections.abc import Sequence

from datasets import Dataset
from trl import SFTConfig, SFTTrainer, pack_dataset

from training.data.examples import Example, Split
from training.loss import labels
from training.trainers.common import Job, Outcome, constructing_trainer, fit, optimizers, trainer_arguments


def train(job: Job) -> Outcome:
    """Train `job.model` in place, and leave the weights of the best evaluation in it."""
    heldout = examples_of(job.prepared.heldout)
    with constructing_trainer(job):
        trainer = SFTTrainer(
            model=job.model,
            args=_config(job),
            train_dataset=_packed(job, _dataset(examples_of(job.prepared.train))),
            eval_dataset=_dataset(heldout) if heldout else None,
            processing_class=job.loaded.tokenizer,
            optimizers=optimizers(job),
        )
    return fit(trainer, job)


def _config(job: Job) -> SFTConfig:
    return SFTConfig(
        **trainer_arguments(job),
        max_length=job.config.data.max_tokens,
        packing=job.config.data.packing,
        packing_strategy="bfd",
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def _dataset(examples: Sequence[Example]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [list(example.ids) for example in examples],
            "labels": [labels(example) for example in examples],
        }
    )


def examples_of(split: Split) -> list[Example]:
    """The examples of a split that was prepared for sft."""
    examples = [example for example in split.examples if isinstance(example, Example)]
    assert len(examples) == len(split.examples), "the data was prepared for another objective"
    return examples


def _packed(job: Job, dataset: Dataset) -> Dataset:
    """Pack several examples into each row of `max_tokens` by best fit; none is cut, and none attends to another."""
    return pack_dataset(dataset, job.config.data.max_tokens, "bfd") if job.config.data.packing else dataset
