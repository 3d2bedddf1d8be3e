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
from training import launched, measure, peak, reward_model
from training.base import load, surprises, training_device
from training.config import TrainConfig
from training.data.examples import Pair, Prepared, Prompt
from training.data.prepare import check, encode
from training.errors import GateFailed
from training.export import TrainedBase, file_dtype, round_weights, write_adapter, write_model
from training.extras import check_device, check_extras
from training.forecast import predicted_bytes
from training.graft import graft
from training.papers import write_papers
from training.parity import Reference, Verdict, compare, rows_of
from training.reference import reference
from training.report import Report
from training.reward_folder import check_base, read_card
from training.serving import ServingPath
from training.sharding import check_shardable, shard
from training.trainers.common import Job, Outcome
from training.trainers.weights import trainable
from training.watch import Watch
from training.workdir import Again, Workdir, check_output, claimed, work_folder


@dataclass(frozen=True, slots=True)
class Made:
    """What is left of a run when its model is dropped. `said` is None where nothing is to be compared."""

    outcome: Outcome
    figures: measure.Comparison
    said: Reference | None
    precision: str
    trainable: int
    measured_bytes: int


def train(config: TrainConfig, *, data_dir: Path, resume: bool | None, watch: Watch, serve: ServingPath | None) -> Path:
    """Run `config` and return its output folder, which appears by one rename.

    `resume` goes on with an interrupted run (True), begins anew (False), or refuses to choose (None). `serve` is the
    serving path for the parity gate, None to leave it out. Under a launcher every process runs this; the first one
    alone writes, and measures alone unless the base is spread over all.
    Raises TrainingError or LoaderError. After GateFailed the folder is there, to be looked at, not to be pushed.
    """
    again: Again = "ask" if resume is None else "resume" if resume else "fresh"
    sharded = launched.takes_over_fsdp(os.environ)
    if sharded:
        check_shardable(config)
    check_extras(config)
    device = training_device(config)
    check_device(config, device.type)
    if launched.is_first():
        check_output(config.output, again)
    checked = check(config)
    if config.steps.threads is not None:
        torch.set_num_threads(config.steps.threads)
    source = resolve(config.base, data_dir, _stages(watch))
    prepared = encode(config, checked, tokenizer_of(source))
    base = TrainedBase(source.id, fingerprint(source.path, data_dir), config.quantized)
    if config.reward.model is not None:
        check_base(config.reward.model, read_card(config.reward.model), base.id, base.weights)
    for note in prepared.notes:
        watch.note(note)
    predicted = predicted_bytes(config, source, prepared, device, watch)
    with _work(config, prepared, base, again, device) as work:
        made = _made(config, source, base, prepared, work, watch, gated=serve is not None, sharded=sharded)
        if not launched.is_first():
            return config.output
        verdict = _verdict(config, made, work, serve, watch)
        report = _report(config, base, prepared, made, verdict, predicted, work)
        write_papers(report, config, work)
        work.publish()
    if verdict is not None and verdict.complaint is not None:
        raise GateFailed(verdict.complaint)
    return config.output


def _made(
    config: TrainConfig,
    source: Source,
    base: TrainedBase,
    prepared: Prepared,
    work: Workdir,
    watch: Watch,
    *,
    gated: bool,
    sharded: bool,
) -> Made:
    """Load, graft, train, measure and write the weights. The model lives no longer than this."""
    watch.stage(f"loading {source.id}")
    loaded = load(config, source, spread=sharded)
    for note in surprises(loaded):
        watch.note(note)
    model = graft(loaded.model, config)
    if sharded:
        watch.note(shard(model, loaded))
    job = Job(model, loaded, prepared, config, work.path, watch)

    def look(model: torch.nn.Module) -> measure.Look:
        return measure.look(model, loaded, prepared, config)

    before = measure.Look()
    if launched.is_first() or sharded:
        watch.stage("measuring the base")
        before = measure.look_at_base(model, work.path / "base.json", look)
    watch.stage(_told(config, prepared))
    peak.begin()
    outcome = _trainer(config)(job)
    measured = peak.peak_bytes()
    if not launched.is_first() and not sharded:
        return Made(outcome, measure.compared(before, before), None, loaded.precision, 0, measured)
    dtype = file_dtype(config, source)
    round_weights(model, config, dtype)
    watch.stage("measuring what was trained")
    figures = measure.compared(before, look(model))
    said = None
    if gated and config.gate.enabled and config.objective != "reward" and isinstance(model, PeftModel):
        said = reference(model, rows_of(_sequences(prepared), config.gate.examples), autocast=loaded.autocast)
    count = sum(weight.numel() for weight in trainable(model).values())
    if launched.is_first():
        _write_weights(job, base, work.result, dtype)
    return Made(outcome, figures, said, loaded.precision, count, measured)


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


def _sequences(prepared: Prepared) -> list[Prompt]:
    """Whole token rows for the parity gate: held-out ones, or training ones where nothing is held out."""
    rows = []
    for one in prepared.heldout.examples or prepared.train.examples:
        rows.append(Prompt(one.prompt_ids + one.chosen_ids if isinstance(one, Pair) else one.ids, ""))
    return rows


def _write_weights(job: Job, base: TrainedBase, folder: Path, dtype: torch.dtype) -> None:
    """What was trained, as its kind is written. A whole model is cast: nothing measures it after this."""
    if job.config.objective == "reward":
        reward_model.write(job.model, job.loaded, job.config, folder, base)
    elif isinstance(job.model, PeftModel):
        write_adapter(job.model, job.config, folder, dtype, base)
    else:
        write_model(job.model, job.loaded.tokenizer, folder, dtype)


def _verdict(config: TrainConfig, made: Made, work: Workdir, serve: ServingPath | None, watch: Watch) -> Verdict | None:
    """The parity gate's, once the trainer's model is gone: there may be no room for two."""
    if serve is None or made.said is None or not made.said.rows:
        return None
    watch.stage(f"comparing with the serving path in {config.gate.dtype}")
    gc.collect()
    torch.cuda.empty_cache()
    return compare(made.said, serve, work.result, dtype=config.gate.dtype, quantization=config.quantized)


def _report(
    config: TrainConfig,
    base: TrainedBase,
    prepared: Prepared,
    made: Made,
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
        precision=made.precision,
        device=torch.cuda.get_device_name() if training_device(config).type == "cuda" else "cpu",
        data=tuple(split.used for split in splits if split.examples),
        steps=made.outcome.steps,
        tokens=made.outcome.tokens,
        seconds=made.outcome.seconds,
        trainable=made.trainable,
        bytes=sum(path.stat().st_size for path in work.result.glob("*.safetensors")),
        predicted_bytes=predicted,
        measured_bytes=made.measured_bytes,
        heldout_loss=made.figures.heldout_loss,
        task_score=made.figures.task_score,
        general_loss=made.figures.general_loss,
        parity=None if verdict is None else verdict.parity,
        metrics=made.outcome.metrics,
        samples=made.figures.samples,
    )


@contextmanager
def _work(
    config: TrainConfig, prepared: Prepared, base: TrainedBase, again: Again, device: torch.device
) -> Iterator[Workdir]:
    """The work folder, which the first process claims before the others look into it."""
    if not launched.is_first():
        PartialState(cpu=device.type == "cpu").wait_for_everyone()
        yield Workdir(config.output, work_folder(config.output))
        return
    data = {"data.train": prepared.train.used.sha256, "data.heldout": prepared.heldout.used.sha256}
    with claimed(config, {**data, "base": base.weights}, again) as work:
        if launched.processes() > 1:
            PartialState(cpu=device.type == "cpu").wait_for_everyone()
        yield work


def _told(config: TrainConfig, prepared: Prepared) -> str:
    """The stage's name: what is trained on how much."""
    used = prepared.train.used
    return f"training: {config.objective}, {config.method}, {used.examples} examples of {used.tokens} tokens"


def _stages(watch: Watch) -> Progress:
    """A progress that tells the watch each new thing once."""
    told: set[str] = set()

    def progress(what: str, done: float | None) -> None:
        if what not in told:
            told.add(what)
            watch.stage(what)

    return progress
