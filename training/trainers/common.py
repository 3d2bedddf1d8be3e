"""What all trainers share: their arguments, the optimizer, and a training loop that can be interrupted and resumed.

Owns the translation of our config into the libraries' arguments. The objectives are the other modules of this folder,
which alone import trl.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, Trainer
from transformers.integrations.integration_utils import TensorBoardCallback

from training import launcher
from training.base import LoadedBase
from training.config import TrainConfig
from training.data.examples import Prepared
from training.errors import ConfigInvalid
from training.learning_rates import default_learning_rate
from training.metrics_file import MetricsFile
from training.observer import Observer
from training.quiet import libraries_quiet
from training.trainers.recorder import BEST, Recorder, last_checkpoint, totals
from training.trainers.weights import load_trainable, save_trainable, trainable_parameters
from training.workdir import TENSORBOARD

EVAL_EVERY = 0.25
"""The share of the run between two evaluations, unless the config sets it."""
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
CHECKPOINTS = "checkpoints"
TRAINED = "trained.safetensors"
"""The weights at the end of the steps; with this file a resumed run trains no more."""
PROJECT = "rootstock"
"""The project of the run in wandb and trackio, unless their own environment variables name another."""


@dataclass(frozen=True, slots=True)
class Job:
    """The input of a trainer. `model` is what `graft.graft` made of `loaded.model`; `folder` is the work folder."""

    model: PeftModel | PreTrainedModel
    loaded: LoadedBase
    prepared: Prepared
    config: TrainConfig
    folder: Path
    observer: Observer


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of training. `metrics` are the last training figures and those of the best evaluation, by trl's names.

    `seconds` leaves out interruptions.
    """

    steps: int
    tokens: int
    seconds: float
    metrics: dict[str, float]


def trainer_arguments(job: Job) -> dict[str, Any]:
    """Keyword arguments for transformers' TrainingArguments; each objective adds its own. Raises ConfigInvalid."""
    config, steps = job.config, job.config.steps
    evaluates = bool(job.prepared.heldout.examples)
    eval_every = steps.eval_every or EVAL_EVERY
    return {
        "output_dir": str(job.folder / CHECKPOINTS),
        "per_device_train_batch_size": steps.micro_batch,
        "per_device_eval_batch_size": steps.micro_batch,
        "gradient_accumulation_steps": accumulation(config),
        "num_train_epochs": steps.epochs,
        "max_steps": steps.max_steps or -1,
        "learning_rate": learning_rate(job),
        "lr_scheduler_type": SCHEDULES[config.optimizer.schedule],
        "warmup_steps": config.optimizer.warmup,
        "weight_decay": config.optimizer.weight_decay,
        "max_grad_norm": config.optimizer.max_grad_norm,
        "optim": OPTIMIZERS[config.optimizer.name],
        "bf16": job.loaded.autocast,
        "fp16": False,
        "use_cpu": job.loaded.device.type == "cpu",
        "activation_checkpointing": steps.checkpointing,
        "gradient_checkpointing": None,  # the same key by its old name, which trl sets
        "seed": steps.seed,
        "data_seed": steps.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        # TensorBoard gets a folder that outlives the checkpoints; see `fit`.
        "report_to": [tracker for tracker in config.track if tracker != "tensorboard"] or "none",
        "project": PROJECT,
        "run_name": config.output.name,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": eval_every if evaluates else None,
        "save_strategy": "steps",
        "save_steps": steps.save_every or eval_every,
        # The previous one stays until the next is sealed: a kill may come while that is being written.
        "save_total_limit": 2,
        "dataloader_pin_memory": job.loaded.device.type == "cuda",
    }


def accumulation(config: TrainConfig) -> int:
    """Gradient accumulation steps of one process. Raises ConfigInvalid when the batch does not divide evenly."""
    at_once = config.steps.micro_batch * launcher.world_size()
    if config.steps.batch % at_once:
        fault = f"steps.batch: {config.steps.batch} is no multiple of micro_batch x processes, {at_once}."
        raise ConfigInvalid("The config", [fault])
    return config.steps.batch // at_once


def learning_rate(job: Job) -> float:
    """The config's, else the default for the method, the objective and the base's size."""
    if job.config.optimizer.learning_rate is not None:
        return job.config.optimizer.learning_rate
    return default_learning_rate(job.config.method, job.config.objective, job.loaded.num_parameters)


def optimizers(job: Job) -> tuple[torch.optim.Optimizer | None, None]:
    """The Trainer's argument of that name: for LoRA+ (arXiv 2402.12354) an optimizer whose B matrices learn faster.

    Otherwise None, so that the trainer makes its own.
    """
    config = job.config
    ratio = config.adapter.lora_plus_ratio
    if ratio is None or config.method == "full":
        return None, None
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in trainable_parameters(job.model).items():
        groups[".lora_B." in name].append(parameter)
    rate = learning_rate(job)
    grouped = [
        {"params": parameters, "lr": rate * ratio if is_b else rate}
        for is_b, parameters in groups.items()
        if parameters
    ]
    if config.optimizer.name == "adamw":
        return torch.optim.AdamW(grouped, weight_decay=config.optimizer.weight_decay), None
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind = PagedAdamW8bit if config.optimizer.name == "paged_adamw_8bit" else AdamW8bit
    return kind(grouped, weight_decay=config.optimizer.weight_decay), None


@contextmanager
def constructing_trainer(job: Job) -> Iterator[None]:
    """A block for a trainer's constructor: the libraries stay quiet, and adapters stay in fp32.

    On quantized bases trl rounds adapters to bf16. Small updates would be lost, and a resumed run, whose adapters
    are read as fp32, would diverge from an uninterrupted one.
    """
    before = {name: parameter.data for name, parameter in trainable_parameters(job.model).items()}
    with libraries_quiet():
        yield
    for name, parameter in trainable_parameters(job.model).items():
        parameter.data = before[name].to(parameter.device)


def fit(trainer: Trainer, job: Job, *, best_metric: str = "eval_loss", greater_is_better: bool = False) -> Outcome:
    """Train from the last complete checkpoint, or from the start, and leave the best weights in the model.

    `best_metric` decides which evaluation was best. Without evaluations the last weights stay.
    """
    done = job.folder / TRAINED
    if done.exists():
        load_trainable(job.model, done)
        return _outcome(job, best_metric, greater_is_better)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Recorder(job.folder, job.observer, job.config.steps.patience, best_metric, greater_is_better))
    if "tensorboard" in job.config.track:
        from torch.utils.tensorboard import SummaryWriter

        trainer.add_callback(TensorBoardCallback(SummaryWriter(job.folder / TENSORBOARD)))
    checkpoint = last_checkpoint(job.folder / CHECKPOINTS)
    if checkpoint is not None:
        job.observer.note(f"Resuming after step {checkpoint.name.rpartition('-')[2]}.")
    with libraries_quiet():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.accelerator.wait_for_everyone()
    best = job.folder / BEST
    if best.exists():
        load_trainable(job.model, best)
    if trainer.is_world_process_zero():
        save_trainable(job.model, done)
    return _outcome(job, best_metric, greater_is_better)


def _outcome(job: Job, best_metric: str, greater_is_better: bool) -> Outcome:
    """The last figures of training, and those of the evaluation whose weights the model has now."""
    records = list(MetricsFile(job.folder).records())
    tokens, seconds = totals(records)
    figures: dict[str, float] = {}
    for record in records:
        figures |= record
    steps = int(figures.pop("step", 0))
    evaluations = [record for record in records if best_metric in record]
    if evaluations:
        best = (max if greater_is_better else min)(evaluations, key=lambda record: record[best_metric])
        figures |= {name: value for name, value in best.items() if name != "step"}
    return Outcome(steps, tokens, seconds, figures)
