"""A training run from config to folder: what is checked, made, measured and written, in that order.

Owns the order alone; each step is a module of its own.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel

from loader.base import tokenizer_of
from loader.fingerprint import fingerprint
from loader.progress import Progress
from loader.source import Source, resolve
from training import evaluation, launcher, peak_memory, reward_model
from training.base import base_notes, load, training_device
from training.config import TrainConfig
from training.data.examples import Pair, Prepared, Prompt
from training.data.prepare import check, encode
from training.errors import GateFailed
from training.export import TrainedBase, file_dtype, round_weights, write_adapter, write_model
from training.extras import check_device, check_extras
from training.forecast import predicted_bytes
from training.graft import graft
from training.observer import Observer
from training.output_files import write_output_files
from training.parity import ReferenceLogprobs, Verdict, compare, rows_of
from training.reference_logprobs import reference_logprobs
from training.report import Report
from training.reward_folder import check_base, read_card
from training.serving import ServingPath
from training.sharding import check_shardable, shard
from training.trainers.common import Job, Outcome
from training.trainers.weights import trainable_parameters
from training.workdir import ResumePolicy, Workdir, check_output, claim_workdir, work_folder


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """What the rest of a run needs once its model is dropped.

    `reference` is None where the parity gate has nothing to compare. `trainable` counts parameters; `measured_bytes` is
    the peak memory of the training steps.
    """

    outcome: Outcome
    comparison: evaluation.Comparison
    reference: ReferenceLogprobs | None
    precision: str
    trainable: int
    measured_bytes: int


def train(
    config: TrainConfig, *, data_dir: Path, resume: bool | None, observer: Observer, serve: ServingPath | None
) -> Path:
    """Run `config` and return its output folder, which appears by one rename.

    `resume`: True continues an interrupted run, False discards it and starts over, None raises OutputInTheWay if there
    is one. `serve` is the serving path for the parity gate; None skips the gate. Under a launcher every process runs
    this. Only the main process writes, and only it evaluates, unless the base is sharded over all processes.
    Raises TrainingError or LoaderError. GateFailed leaves the output folder in place for inspection.
    """
    policy: ResumePolicy = "ask" if resume is None else "resume" if resume else "fresh"
    sharded = launcher.take_over_fsdp(os.environ)
    if sharded:
        check_shardable(config)
    check_extras(config)
    device = training_device(config)
    check_device(config, device.type)
    if launcher.is_main_process():
        check_output(config.output, policy)
    checked = check(config)
    if config.steps.threads is not None:
        torch.set_num_threads(config.steps.threads)
    source = resolve(config.base, data_dir, _stage_progress(observer))
    prepared = encode(config, checked, tokenizer_of(source))
    base = TrainedBase(source.id, fingerprint(source.path, data_dir), config.quantized)
    if config.reward.model is not None:
        check_base(config.reward.model, read_card(config.reward.model), base.id, base.weights)
    for note in prepared.notes:
        observer.note(note)
    predicted = predicted_bytes(config, source, prepared, device, observer)
    with _workdir(config, prepared, base, policy, device) as work:
        trained = _train_model(config, source, base, prepared, work, observer, gated=serve is not None, sharded=sharded)
        if not launcher.is_main_process():
            return config.output
        verdict = _compare_with_server(config, trained, work, serve, observer)
        report = _report(config, base, prepared, trained, verdict, predicted, work)
        write_output_files(report, config, work)
        work.publish()
    if verdict is not None and verdict.complaint is not None:
        raise GateFailed(verdict.complaint)
    return config.output


def _train_model(
    config: TrainConfig,
    source: Source,
    base: TrainedBase,
    prepared: Prepared,
    work: Workdir,
    observer: Observer,
    *,
    gated: bool,
    sharded: bool,
) -> TrainedRun:
    """Load the base, add the adapter, train, evaluate and write the weights. The model is freed on return."""
    observer.stage(f"loading {source.id}")
    loaded = load(config, source, sharded=sharded)
    for note in base_notes(loaded):
        observer.note(note)
    model = graft(loaded.model, config)
    if sharded:
        observer.note(shard(model, loaded))
    job = Job(model, loaded, prepared, config, work.path, observer)

    def evaluate(model: torch.nn.Module) -> evaluation.Evaluation:
        return evaluation.evaluate(model, loaded, prepared, config)

    before = evaluation.Evaluation()
    if launcher.is_main_process() or sharded:
        observer.stage("measuring the base")
        before = evaluation.evaluate_base(model, work.path / "base.json", evaluate)
    observer.stage(_training_stage(config, prepared))
    peak_memory.reset()
    outcome = _trainer(config)(job)
    measured = peak_memory.peak_bytes()
    if not launcher.is_main_process() and not sharded:
        return TrainedRun(outcome, evaluation.compare(before, before), None, loaded.precision, 0, measured)
    dtype = file_dtype(config, source)
    round_weights(model, config, dtype)
    observer.stage("measuring what was trained")
    comparison = evaluation.compare(before, evaluate(model))
    reference = None
    if gated and config.gate.enabled and config.objective != "reward" and isinstance(model, PeftModel):
        rows = rows_of(_whole_sequences(prepared), config.gate.examples)
        reference = reference_logprobs(model, rows, autocast=loaded.autocast)
    count = sum(weight.numel() for weight in trainable_parameters(model).values())
    if launcher.is_main_process():
        _write_weights(job, base, work.result, dtype)
    return TrainedRun(outcome, comparison, reference, loaded.precision, count, measured)


def _trainer(config: TrainConfig) -> Callable[[Job], Outcome]:
    """The objective's trainer; trl takes seconds to import, and each objective needs a part of it."""
    if config.objective == "dpo":
        from training.trainers import dpo

        return dpo.train
    if config.objective == "reward":
        from training.trainers import reward

        return reward.train
    if config.objective in ("grpo", "rloo"):
        from training.trainers import rl

        return rl.train
    from training.trainers import sft

    return sft.train


def _whole_sequences(prepared: Prepared) -> list[Prompt]:
    """Prompt and answer as one sequence, for the parity gate: held-out examples, or training examples if none are."""
    examples = prepared.heldout.examples or prepared.train.examples
    return [
        Prompt(example.prompt_ids + example.chosen_ids if isinstance(example, Pair) else example.ids, "")
        for example in examples
    ]


def _write_weights(job: Job, base: TrainedBase, folder: Path, dtype: torch.dtype) -> None:
    """Write an adapter, a reward model or a whole model. A whole model is cast in place: do not use it afterwards."""
    if job.config.objective == "reward":
        reward_model.write(job.model, job.loaded, job.config, folder, base)
    elif isinstance(job.model, PeftModel):
        write_adapter(job.model, job.config, folder, dtype, base)
    else:
        write_model(job.model, job.loaded.tokenizer, folder, dtype)


def _compare_with_server(
    config: TrainConfig, trained: TrainedRun, work: Workdir, serve: ServingPath | None, observer: Observer
) -> Verdict | None:
    """Run the parity gate. Only after the trainer's model is freed: memory may not hold both."""
    if serve is None or trained.reference is None or not trained.reference.rows:
        return None
    observer.stage(f"comparing with the serving path in {config.gate.dtype}")
    gc.collect()
    torch.cuda.empty_cache()
    return compare(trained.reference, serve, work.result, dtype=config.gate.dtype, quantization=config.quantized)


def _report(
    config: TrainConfig,
    base: TrainedBase,
    prepared: Prepared,
    trained: TrainedRun,
    verdict: Verdict | None,
    predicted: int,
    work: Workdir,
) -> Report:
    splits = (prepared.train, prepared.heldout)
    return Report(
        method=config.method,
        objective=config.objective,
        base=base.id,
        base_weights=base.weights,
        quantization=base.quantization,
        precision=trained.precision,
        device=torch.cuda.get_device_name() if training_device(config).type == "cuda" else "cpu",
        data=tuple(split.used for split in splits if split.examples),
        steps=trained.outcome.steps,
        tokens=trained.outcome.tokens,
        seconds=trained.outcome.seconds,
        trainable=trained.trainable,
        bytes=sum(path.stat().st_size for path in work.result.glob("*.safetensors")),
        predicted_bytes=predicted,
        measured_bytes=trained.measured_bytes,
        heldout_loss=trained.comparison.heldout_loss,
        task_score=trained.comparison.task_score,
        general_loss=trained.comparison.general_loss,
        parity=None if verdict is None else verdict.parity,
        metrics=trained.outcome.metrics,
        samples=trained.comparison.samples,
    )


@contextmanager
def _workdir(
    config: TrainConfig, prepared: Prepared, base: TrainedBase, policy: ResumePolicy, device: torch.device
) -> Iterator[Workdir]:
    """The run's work folder. The main process claims it; the others wait until it has."""
    if not launcher.is_main_process():
        PartialState(cpu=device.type == "cpu").wait_for_everyone()
        yield Workdir(config.output, work_folder(config.output))
        return
    data = {"data.train": prepared.train.used.sha256, "data.heldout": prepared.heldout.used.sha256}
    with claim_workdir(config, {**data, "base": base.weights}, policy) as work:
        if launcher.world_size() > 1:
            PartialState(cpu=device.type == "cpu").wait_for_everyone()
        yield work


def _training_stage(config: TrainConfig, prepared: Prepared) -> str:
    """The name of the training stage: objective, method and amount of data."""
    used = prepared.train.used
    return f"training: {config.objective}, {config.method}, {used.examples} examples of {used.tokens} tokens"


def _stage_progress(observer: Observer) -> Progress:
    """A Progress callback that reports each new activity to `observer` once, as a stage."""
    reported: set[str] = set()

    def progress(what: str, done: float | None) -> None:
        if what not in reported:
            reported.add(what)
            observer.stage(what)

    return progress
