"""Reinforcement learning from a reward model: sample answers, score them, make the better ones likelier.

Owns the handover to trl's GRPOTrainer (arXiv 2402.03300) and RLOOTrainer (arXiv 2402.14740). Both compare the answers
to one prompt with each other, so neither needs a value head. Knows nothing of templates or files.
"""

from collections.abc import Sequence
from typing import Any, cast

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from training import reward_model
from training.data.examples import Prompt
from training.errors import ConfigInvalid
from training.reward_model import RewardModel
from training.trainers.common import Job, Outcome, arguments, fit, making_trainer, optimizers
from training.trainers.reference import refer_to_base

Ids = list[int]


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
    """Train `job.model` in place; it ends with the weights of the evaluation with the highest mean reward."""
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
    return fit(trainer, job, judge="eval_reward", larger_is_better=True)


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
