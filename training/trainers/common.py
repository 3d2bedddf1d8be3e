"""What all trainers share: their arguments, the optimizer, and a run of steps that can be cut off and taken up again.

Owns the translation of our config into the libraries' arguments. The objectives themselves are the other modules of
this folder, which alone import trl.
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

from training import launched
from training.base import Loaded
from training.config import TrainConfig
from training.data.examples import Prepared
from training.defaults import learning_rate
from training.errors import ConfigInvalid
from training.quiet import libraries_quiet
from training.trainers.recorder import Recorder, last_checkpoint, totals
from training.trainers.weights import keep, put_back, trainable
from training.watch import Metrics, Watch

EVALUATIONS = 0.25
"""Unless the config says otherwise, the held-out split is looked at after each such share of the run."""
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
CHECKPOINTS = "checkpoints"
TRAINED = "trained.safetensors"
TENSORBOARD = "tensorboard"
PROJECT = "rootstock"
"""Where wandb and trackio put the run, unless their own variables say otherwise."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run for a trainer. `model` is what `graft.graft` made of `loaded.model`; `folder` is the work folder."""

    model: PeftModel | PreTrainedModel
    loaded: Loaded
    prepared: Prepared
    config: TrainConfig
    folder: Path
    watch: Watch


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the steps came to: `metrics` are its figures, by the trainer's names; see `_outcome`."""

    steps: int
    tokens: int
    seconds: float
    metrics: dict[str, float]


def arguments(job: Job) -> dict[str, Any]:
    """The keyword arguments that every trainer's config takes; the objective adds its own. Raises ConfigInvalid."""
    config, steps = job.config, job.config.steps
    evaluates = bool(job.prepared.heldout.examples)
    eval_every = steps.eval_every or EVALUATIONS
    return {
        "output_dir": str(job.folder / CHECKPOINTS),
        "per_device_train_batch_size": steps.micro_batch,
        "per_device_eval_batch_size": steps.micro_batch,
        "gradient_accumulation_steps": accumulation(config),
        "num_train_epochs": steps.epochs,
        "max_steps": steps.max_steps or -1,
        "learning_rate": rate(job),
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
        # The one before stays until the next is sealed: a kill may come while it is being written.
        "save_total_limit": 2,
        "dataloader_pin_memory": job.loaded.device.type == "cuda",
    }


def accumulation(config: TrainConfig) -> int:
    """Micro-batches that one process sums up for a step. Raises ConfigInvalid when processes do not divide them."""
    portion = config.steps.micro_batch * launched.processes()
    if config.steps.batch % portion:
        fault = f"steps.batch: {config.steps.batch} is no multiple of micro_batch x processes, {portion}."
        raise ConfigInvalid("The config", [fault])
    return config.steps.batch // portion


def rate(job: Job) -> float:
    """The learning rate: the config's, else the default for the method, the objective and the base's size."""
    if job.config.optimizer.learning_rate is not None:
        return job.config.optimizer.learning_rate
    return learning_rate(job.config.method, job.config.objective, job.loaded.size)


def optimizers(job: Job) -> tuple[torch.optim.Optimizer | None, None]:
    """For LoRA+ (arXiv 2402.12354) an optimizer whose B matrices learn faster; else the trainer makes its own."""
    config = job.config
    ratio = config.adapter.lora_plus_ratio
    if ratio is None or config.method == "full":
        return None, None
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in trainable(job.model).items():
        groups[".lora_B." in name].append(parameter)
    base = rate(job)
    grouped = [
        {"params": parameters, "lr": base * ratio if is_b else base}
        for is_b, parameters in groups.items()
        if parameters
    ]
    if config.optimizer.name == "adamw":
        return torch.optim.AdamW(grouped, weight_decay=config.optimizer.weight_decay), None
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind = PagedAdamW8bit if config.optimizer.name == "paged_adamw_8bit" else AdamW8bit
    return kind(grouped, weight_decay=config.optimizer.weight_decay), None


@contextmanager
def making_trainer(job: Job) -> Iterator[None]:
    """Around a trainer's constructor: adapters stay in fp32, libraries stay quiet.

    On quantized bases trl rounds adapters to bf16. Small updates would be lost, and a resumed run, whose adapters
    are read as fp32, would go another way than an unbroken one.
    """
    before = {name: parameter.data for name, parameter in trainable(job.model).items()}
    with libraries_quiet():
        yield
    for name, parameter in trainable(job.model).items():
        parameter.data = before[name].to(parameter.device)


def fit(trainer: Trainer, job: Job, *, judge: str = "eval_loss", larger_is_better: bool = False) -> Outcome:
    """Train from the last whole checkpoint in the work folder, or from the start; leaves the best weights in the model.

    `judge` is the figure that decides which evaluation was best. Where nothing was evaluated, the last weights stay.
    """
    done = job.folder / TRAINED
    if done.exists():
        put_back(job.model, done)
        return _outcome(job, judge, larger_is_better)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Recorder(job.folder, job.watch, job.config.steps.patience, judge, larger_is_better))
    if "tensorboard" in job.config.track:
        from torch.utils.tensorboard import SummaryWriter

        trainer.add_callback(TensorBoardCallback(SummaryWriter(job.folder / TENSORBOARD)))
    checkpoint = last_checkpoint(job.folder / CHECKPOINTS)
    if checkpoint is not None:
        job.watch.note(f"Resuming after step {checkpoint.name.rpartition('-')[2]}.")
    with libraries_quiet():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.accelerator.wait_for_everyone()
    best = job.folder / "best.safetensors"
    if best.exists():
        put_back(job.model, best)
    if trainer.is_world_process_zero():
        keep(job.model, done)
    return _outcome(job, judge, larger_is_better)


def _outcome(job: Job, judge: str, larger_is_better: bool) -> Outcome:
    """The last figures of training, and those of the evaluation whose weights the model ended with."""
    records = list(Metrics(job.folder / "metrics.jsonl").records())
    tokens, seconds = totals(records)
    figures: dict[str, float] = {}
    for record in records:
        figures |= record
    steps = int(figures.pop("step", 0))
    looks = [record for record in records if judge in record]
    if looks:
        best = (max if larger_is_better else min)(looks, key=lambda record: record[judge])
        figures |= {name: value for name, value in best.items() if name != "step"}
    return Outcome(steps, tokens, seconds, figures)
