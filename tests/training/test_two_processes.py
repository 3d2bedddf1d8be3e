"""Two processes learn what one learns, and the first of them alone writes. The network is the machine's own (gloo)."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.models import tiny_model_dir
from tests.support.training_data import chat, write
from training.errors import ConfigInvalid
from training.launched import check_launcher
from training.reading import read_config
from training.run import train
from training.watch import Silent

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "deploy" / "accelerate" / "two-cpu-processes.yaml"


def written(folder: Path, name: str) -> Path:
    """A config of three steps of eight examples, which two processes can share evenly."""
    rows = [chat(f"What is {number}?", "x" * (number % 7 + 1)) for number in range(24)]
    folder.mkdir()
    told = {
        "output": str(folder / name),
        "base": str(tiny_model_dir("llama", folder.parent / "models")),
        "data": {
            "train": str(write(folder / "train.jsonl", rows)),
            "heldout": str(write(folder / "heldout.jsonl", [chat("And 99?", "xx"), chat("And 98?", "x")])),
        },
        "precision": "float32",
        "device": "cpu",
        "adapter": {"rank": 4, "alpha": 8, "saved_as": "float32"},
        "optimizer": {"learning_rate": 0.01},
        "steps": {"batch": 8, "micro_batch": 2, "eval_every": 2, "threads": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The outputs of one process and of two, and the folder where the two tell what they wrote."""
    folder = tmp_path_factory.mktemp("processes")
    alone, both, reports = written(folder / "alone", "run"), written(folder / "both", "run"), folder / "reports"
    reports.mkdir()
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH)),
        *("--main_process_port", str(free_port()), "-m", "tests.support.launched", str(both), str(reports)),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    threads = torch.get_num_threads()
    with subprocess.Popen(
        launch, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as launched:
        try:
            one = train(read_config(alone), data_dir=reports, resume=None, watch=Silent(), serve=None)
            said, _ = launched.communicate(timeout=240)
        finally:
            torch.set_num_threads(threads)
            launched.terminate()
    assert launched.returncode == 0, said
    return one, read_config(both).output, reports


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launcher_that_spreads_one_model_is_refused(variable: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"each process holds the whole base.*several-gpus\.yaml"):
        check_launcher({"RANK": "0", variable: "true"})
    check_launcher({"RANK": "0", variable: "false"})


def test_they_learn_the_same(runs: tuple[Path, Path, Path]) -> None:
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in runs[:2])
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].abs().max() > 1e-3, "it has learned something"
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)


def test_they_report_the_same(runs: tuple[Path, Path, Path]) -> None:
    one, two = (json.loads((folder / "report.json").read_text()) for folder in runs[:2])
    assert (two["steps"], two["trainable"]) == (one["steps"], one["trainable"])
    assert two["heldout_loss"]["trained"] == pytest.approx(one["heldout_loss"]["trained"], rel=1e-4)
    assert sorted(path.name for path in runs[0].iterdir()) == sorted(path.name for path in runs[1].iterdir())


def test_the_first_alone_writes(runs: tuple[Path, Path, Path]) -> None:
    """All but what each process needs to go on from a checkpoint, the state of its random numbers."""
    first, second = (json.loads((runs[2] / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert any("report.json" in line for line in first)
    assert not [line for line in second if "/.run.work/checkpoints/checkpoint-" not in line]
    assert {path.name for path in runs[1].parent.iterdir()} == {"run", "config.yaml", "train.jsonl", "heldout.jsonl"}
