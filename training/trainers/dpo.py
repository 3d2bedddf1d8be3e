"""Direct preference optimization (arXiv 2305.18290) on tokenized pairs.

Owns the call of trl's DPOTrainer. The reference is the base: the model with its adapter switched off, or a copy
of the base for a full fine-tune. Knows nothing of templates or files.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from training.data.examples import Pair
from training.trainers.common import Job, Outcome, constructing_trainer, fit, optimizers, trainer_arguments
from training.trainers.ref_adapter import drop_ref_adapter


class _TokenizedDPOTrainer(DPOTrainer):
    """Takes tokenized pairs. trl would render and tokenize the text again, by other rules than the data's checks."""

    def _prepare_dataset(self, dataset: Dataset, *unused: Any) -> Dataset:
        return dataset


def train(job: Job) -> Outcome:
    """Train `job.model` in place, and leave the weights of the best evaluation in it."""
    heldout = cast(Sequence[Pair], job.prepared.heldout.examples)
    with constructing_trainer(job):
        trainer = _TokenizedDPOTrainer(
            model=job.model,
            ref_model=_reference(job),
            args=_config(job),
            train_dataset=_dataset(cast(Sequence[Pair], job.prepared.train.examples)),
            eval_dataset=_dataset(heldout) if heldout else None,
            processing_class=job.loaded.tokenizer,
            optimizers=optimizers(job),
        )
        drop_ref_adapter(job.model)
    return fit(trainer, job)


def _reference(job: Job) -> PreTrainedModel | None:
    if isinstance(job.model, PeftModel):
        return None
    return copy.deepcopy(job.model).requires_grad_(False)


def _config(job: Job) -> DPOConfig:
    return DPOConfig(
        **trainer_arguments(job),
        beta=job.config.preference.beta,
        # The data is already cut to max_tokens, and dropout is `adapter.dropout`'s decision.
        max_length=None,
        disable_dropout=False,
    )


def _dataset(pairs: Sequence[Pair]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [list(pair.prompt_ids) for pair in pairs],
            "chosen_ids": [list(pair.chosen_ids) for pair in pairs],
            "rejected_ids": [list(pair.rejected_ids) for pair in pairs],
        }
    )
