"""`rootstock bench training`: methods of training side by side on one task, and sweeps over what can be set.

Owns what is run and in which order. A black box like the rest of this folder: every run is a `rootstock train` of its
own, and what is known of it is the report.json that it leaves. Runs that are in the raw results already are skipped,
so a comparison can be made in portions.
"""

import hashlib
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import orjson
import typer
import yaml
from rich.console import Console

from bench import launch, options, training_report
from bench.errors import BenchError
from bench.report import machine

STEPS = 30
"""Less than half an epoch of the README's task: there are many runs."""
FULL_RATE = 5e-5
"""A tenth of the adapters': what full fine-tunes want (see docs/training.md)."""
EVERY = ("adapter.layers=null", f"steps.max_steps={STEPS}", "gate.enabled=false")
"""What all runs share: every layer is adapted, the steps are the same, and nothing is served."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One thing to compare. `group` is the table it stands in; `changes` are --set arguments on top of the config."""

    group: str
    label: str
    changes: tuple[str, ...] = ()


METHODS = (
    Variant("method", "full", ("method=full", f"optimizer.learning_rate={FULL_RATE}")),
    Variant("method", "LoRA"),
    Variant("method", "QLoRA (NF4)", ("method=qlora", "quantization=nf4")),
    Variant("method", "QLoRA (FP4)", ("method=qlora", "quantization=fp4")),
    Variant("method", "DoRA", ("method=dora",)),
)
"""The default is LoRA of rank 16 on all linear layers at the config's rate; every sweep is shown around it."""
SWEEPS = (
    Variant("rank", "2", ("adapter.rank=2", "adapter.alpha=4")),
    Variant("rank", "64", ("adapter.rank=64", "adapter.alpha=128")),
    Variant("targets", "q and v", ("adapter.targets=[q_proj, v_proj]",)),
    Variant("targets", "attention", ("adapter.targets=[q_proj, k_proj, v_proj, o_proj]",)),
    Variant("targets", "MLP", ("adapter.targets=[gate_proj, up_proj, down_proj]",)),
    Variant("learning rate", "1e-4", ("optimizer.learning_rate=0.0001",)),
    Variant("learning rate", "1e-3", ("optimizer.learning_rate=0.001",)),
    Variant("learning rate", "3e-3", ("optimizer.learning_rate=0.003",)),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One variant with one seed. `key` changes with anything that decides the result."""

    variant: Variant
    seed: int
    key: str


class Trainer(Protocol):
    """Whoever turns a config and changes into the output folder `target`."""

    def __call__(self, config: Path, changes: Sequence[str], target: Path) -> None: ...


def planned(config: Path, seeds: int, sweep_seeds: int) -> list[Run]:
    """Every run, the first seed of everything first, so that a portion already compares."""
    text = config.read_bytes() + b"".join(path.read_bytes() for path in _data(config))
    runs = []
    for seed in range(1, max(seeds, sweep_seeds) + 1):
        variants = [*(METHODS if seed <= seeds else ()), *(SWEEPS if seed <= sweep_seeds else ())]
        for variant in variants:
            identity = "\n".join([*EVERY, *variant.changes, str(seed)]).encode()
            runs.append(Run(variant, seed, hashlib.sha256(text + b"\0" + identity).hexdigest()[:16]))
    return runs


def _data(config: Path) -> list[Path]:
    """The files that the config trains on and measures with: other data is another comparison."""
    try:
        keys = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BenchError(f"{config} is no YAML: {error}") from error
    named = keys.get("data") if isinstance(keys, dict) else None
    if not isinstance(named, dict):
        raise BenchError(f"{config} has no table `data`. Give a config of `rootstock train`.")
    return [Path(named[key]) for key in ("train", "heldout") if key in named]


def missing(runs: Sequence[Run], raw: Path) -> Iterator[Run]:
    done = {result["key"] for result in results(raw)}
    return (run for run in runs if run.key not in done)


def results(raw: Path) -> list[dict[str, Any]]:
    """The whole lines of the raw results; a line that a kill cut off is run again."""
    lines = raw.read_bytes().splitlines(keepends=True) if raw.exists() else []
    return [orjson.loads(line) for line in lines if line.endswith(b"\n")]


def measure(run: Run, config: Path, train: Trainer) -> dict[str, Any]:
    """One run and what it reported. `wall_s` and `cpu_s` are the whole command's, loading and measuring included."""
    with tempfile.TemporaryDirectory(prefix="rootstock-compare-") as scratch:
        target = Path(scratch) / "output"
        began, cpu_before = time.monotonic(), _cpu_s()
        train(config, [*EVERY, *run.variant.changes, f"steps.seed={run.seed}"], target)
        wall_s, cpu_s = time.monotonic() - began, _cpu_s() - cpu_before
        report: dict[str, Any] = orjson.loads((target / "report.json").read_bytes())
    report.pop("samples", None)
    return {
        "key": run.key,
        "group": run.variant.group,
        "label": run.variant.label,
        "seed": run.seed,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "report": report,
    }


def _cpu_s() -> float:
    """Processor time of all commands that have ended: what else the machine does hardly changes it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def append(raw: Path, result: dict[str, Any]) -> None:
    """Add a line; what a kill left of an earlier one is cut off first."""
    kept = b"".join(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in [*results(raw), result])
    raw.parent.mkdir(parents=True, exist_ok=True)
    scratch = raw.with_suffix(".new")
    scratch.write_bytes(kept)
    scratch.replace(raw)


@dataclass(frozen=True, slots=True)
class Command:
    """The `rootstock train` of this environment, in a process of its own: memory peaks are a process's."""

    data_dir: Path

    def __call__(self, config: Path, changes: Sequence[str], target: Path) -> None:
        """Raises BenchError, with the end of its output, when it fails."""
        settings = [part for change in changes for part in ("--set", change)]
        command = [launch.rootstock(), "train", str(config), *settings, "--output", str(target)]
        done = subprocess.run(
            [*command, "--data-dir", str(self.data_dir)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise BenchError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")


def main(
    config: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The task: a config of `rootstock train`.")
    ] = Path("demo/reports.yaml"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, each with its own seed.")] = 3,
    sweep_seeds: Annotated[int, typer.Option(min=0, help="Runs of each point of a sweep; 0 leaves sweeps out.")] = 1,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no run after so many minutes; the same command goes on later.")
    ] = None,
    out: Annotated[
        Path, typer.Option(callback=options.writable, help="Folder for the raw results, the table and the plot.")
    ] = Path("docs"),
    data_dir: options.DataDir = options.DATA_DIR,
) -> None:
    """Compare methods and settings of training on one task; skips runs that are in the raw results already."""
    console = Console()
    raw = out / "training-compared.jsonl"
    runs = planned(config, seeds, sweep_seeds)
    began = time.monotonic()
    console.print(f"{len(list(missing(runs, raw)))} of {len(runs)} runs to go; load is {machine()['load']:.2f}")
    for run in list(missing(runs, raw)):
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            break
        result = measure(run, config, Command(data_dir)) | {"machine": machine()}
        append(raw, result)
        console.print(
            f"{run.variant.group:14} {run.variant.label:12} seed {run.seed}: {training_report.summary(result)}"
        )
    known = {run.key for run in runs}
    compared = [result for result in results(raw) if result["key"] in known]
    if compared:
        for path in training_report.write(out, compared, len(runs)):
            console.print(f"Written: {path}")
