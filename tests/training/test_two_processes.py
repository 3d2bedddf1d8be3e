"""Two processes learn what one learns, each with the whole base or each with half, and the first of them alone writes.

The network is the machine's own (gloo). One launch trains all of it, since the libraries take longest to import.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.models import tiny_model_dir
from tests.support.training_data import chat, write
from training.config_file import parse_config, read_config
from training.errors import ConfigInvalid
from training.launcher import take_over_fsdp
from training.observer import SilentObserver
from training.run import train
from training.sharding import check_shardable

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "accelerate"
METHODS = {"whole": "lora", "lora": "lora", "qlora": "qlora"}
"""The launch's runs by their folders: `whole` has the base in each process, the others spread it."""


def written(folder: Path, method: str) -> Path:
    """A config of three steps of eight examples, which two processes can share evenly."""
    rows = [chat(f"What is {number}?", "x" * (number % 7 + 1)) for number in range(24)]
    folder.mkdir()
    told = {
        "output": str(folder / "run"),
        "base": str(tiny_model_dir("llama", folder.parent / "models")),
        "method": method,
        "data": {
            "train": str(write(folder / "train.jsonl", rows)),
            "heldout": str(write(folder / "heldout.jsonl", [chat("And 99?", "xx"), chat("And 98?", "x")])),
        },
        "precision": "float32",
        "device": "cpu",
        "adapter": {"rank": 4, "alpha": 8, "saved_as": "float32"},
        "optimizer": {"learning_rate": 0.01},
        "steps": {"batch": 8, "micro_batch": 2, "eval_every": 2, "threads": 1},
        "score": {"max_new_tokens": 3},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Runs:
    """Outputs of one process by method, and the folder where a launch of two has its runs and reports."""

    alone: dict[str, Path]
    launched: Path

    def both(self, name: str) -> tuple[Path, Path]:
        """The outputs of one process and of two."""
        return self.alone[METHODS[name]], self.launched / name / "run"

    def told(self, name: str) -> tuple[Any, Any]:
        """What the two processes report of a run."""
        reports = (self.launched / "reports" / f"{name}-{rank}.json" for rank in (0, 1))
        first, second = (json.loads(report.read_text()) for report in reports)
        return first, second


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("processes")
    configs = [written(folder / name, method) for name, method in METHODS.items()]
    reports = folder / "reports"
    reports.mkdir()
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(DEPLOY / "two-cpu-processes-fsdp.yaml"), "--main_process_port", str(free_port())),
        *("-m", "tests.support.launched", str(reports), *map(str, configs)),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    threads = torch.get_num_threads()
    with subprocess.Popen(
        launch, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as launched:
        try:
            alone = {}
            for method in set(METHODS.values()):
                config = read_config(written(folder / f"alone-{method}", method))
                alone[method] = train(config, data_dir=reports, resume=None, observer=SilentObserver(), serve=None)
            said, _ = launched.communicate(timeout=240)
        finally:
            torch.set_num_threads(threads)
            launched.terminate()
    assert launched.returncode == 0, said
    return Runs(alone, folder)


@pytest.mark.parametrize("name", METHODS)
def test_they_learn_the_same(runs: Runs, name: str) -> None:
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in runs.both(name))
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].abs().max() > 1e-3, "it has learned something"
        torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_they_report_the_same(runs: Runs, name: str) -> None:
    folders = runs.both(name)
    one, two = (json.loads((folder / "report.json").read_text()) for folder in folders)
    for key in ("steps", "trainable", "base_weights", "task_score"):
        assert two[key] == one[key]
    for key in ("heldout_loss", "general_loss"):
        assert two[key] == pytest.approx(one[key], rel=1e-4)
    assert sorted(path.name for path in folders[0].iterdir()) == sorted(path.name for path in folders[1].iterdir())


@pytest.mark.parametrize("name", METHODS)
def test_the_first_alone_writes(runs: Runs, name: str) -> None:
    """All but what each process needs to go on from a checkpoint, the state of its random numbers."""
    first, second = (told["changed"] for told in runs.told(name))
    assert any("report.json" in line for line in first)
    assert not [line for line in second if "/.run.work/checkpoints/checkpoint-" not in line]
    kept = {path.name for path in (runs.launched / name).iterdir()}
    assert kept == {"run", "config.yaml", "train.jsonl", "heldout.jsonl"}


def test_each_keeps_half_of_a_base_that_is_spread(runs: Runs) -> None:
    """Of the norms and linear layers of the tiny base, in fp32 and in 4 bits."""
    for name, whole, half in (("lora", "578 KiB", "289 KiB"), ("qlora", "74.0 KiB", "37.0 KiB")):
        said = f"FSDP: of the {whole} in the base's layers, each of 2 processes keeps {half}."
        assert all(said in told["notes"] for told in runs.told(name))
    assert not any("FSDP" in note for told in runs.told("whole") for note in told["notes"])


def test_the_launchers_word_is_kept_from_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "false"}
    assert take_over_fsdp(environment)
    assert not take_over_fsdp(environment), "it is gone"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not take_over_fsdp({"ACCELERATE_USE_FSDP": "true"}), "there is nobody to share with"


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM", "FSDP_OFFLOAD_PARAMS"])
def test_other_ways_of_spreading_are_refused(variable: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"is not supported: .*fsdp\.yaml"):
        take_over_fsdp({variable: "true"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "full"}, "method: full .* Choose lora or qlora"),
        ({"objective": "rloo", "reward": {"model": "x"}}, r"objective: rloo .*several-gpus\.yaml"),
    ],
)
def test_what_cannot_be_spread_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigInvalid, match=told):
        check_shardable(parse_config({"output": "x", "data": {"train": "x"}, **changes}))


@pytest.mark.parametrize("name", ["several-gpus.yaml", "fsdp.yaml"])
def test_the_way_on_gpus_is_the_tested_one(name: str) -> None:
    """The files differ by the device alone."""
    tested = {"several-gpus.yaml": "two-cpu-processes.yaml", "fsdp.yaml": "two-cpu-processes-fsdp.yaml"}[name]
    gpus, cpus = (yaml.safe_load((DEPLOY / file).read_text()) for file in (name, tested))
    gpus.pop("gpu_ids")
    cpus.pop("use_cpu")
    assert gpus == cpus
