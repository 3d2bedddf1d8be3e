"""Supervised fine-tuning on examples that are tokenized already, each token marked as counting in the loss or not.

Owns the handover to trl's SFTTrainer. Knows nothing of templates or files.
"""

from collections.abc import Sequence

from datasets import Dataset
from trl import SFTConfig, SFTTrainer, pack_dataset

from training.data.examples import Example, Split
from training.loss import IGNORED
from training.trainers.common import Job, Outcome, arguments, fit, making_trainer, optimizers


def train(job: Job) -> Outcome:
    """Train `job.model` in place; it ends with the weights of the best evaluation."""
    heldout = examples_of(job.prepared.heldout)
    with making_trainer(job):
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
        **arguments(job),
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


def labels(example: Example) -> list[int]:
    return [token if counts else IGNORED for token, counts in zip(example.ids, example.counted, strict=True)]


def _packed(job: Job, dataset: Dataset) -> Dataset:
    """Several examples in a row of `max_tokens`, best fit first; none is cut, and none sees another."""
    return pack_dataset(dataset, job.config.data.max_tokens, "bfd") if job.config.data.packing else dataset
