"""A whole run: its folder, what stops it before anything is loaded, and a kill that leaves no trace in the weights."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adapters.checkpoint import read_directory
from loader.base import load as load_served
from loader.source import Source
from server.offline_engine import OfflineEngine
from tests.support.kernels import furnished
from tests.support.tiny_training import two_layer_base
from training.config_file import read_config
from training.errors import ConfigInvalid, DataInvalid, GateFailed, MissingExtra, OutputInTheWay
from training.observer import SilentObserver
from training.run import train
from training.serving import ServingPath
from training.workdir import work_folder

ROOT = Path(__file__).parents[2]
FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.yaml",
    "curves.png",
    "metrics.jsonl",
    "report.json",
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Source:
    torch.set_num_threads(1)
    return two_layer_base(tmp_path_factory.mktemp("base"))


def written(folder: Path, base: Source, name: str, **changes: Any) -> Path:
    """A config file, and data beside it: names of numbers, a few held out."""
    data = folder / "train.jsonl"
    rows = [{"prompt": f"{n} in words: ", "completion": "one two three four"[: 3 + n % 15]} for n in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "output": str(folder / name),
        "base": str(base.path),
        "data": {"train": str(data), "heldout_share": 0.2},
        "precision": "float32",
        "device": "cpu",
        "adapter": {"rank": 4, "alpha": 8},
        "optimizer": {"learning_rate": 0.01},
        "steps": {"batch": 4, "micro_batch": 2, "max_steps": 5, "eval_every": 2, "threads": 1},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, Mapping) else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(path: Path, resume: bool | None = None, serve: ServingPath | None = None) -> Path:
    return train(
        read_config(path), data_dir=path.parent / "data", resume=resume, observer=SilentObserver(), serve=serve
    )


def test_a_run_leaves_an_adapter_that_the_server_answers_with_as_the_trainer_did(base: Source, tmp_path: Path) -> None:
    path = written(tmp_path, base, "out", score={"limit": 2, "max_new_tokens": 4}, gate={"dtype": "float32"})
    folder = run(path, serve=OfflineEngine(str(base.path), furnished(tmp_path / "data"), "cpu"))
    assert {file.name for file in folder.iterdir()} == FILES
    assert not work_folder(folder).exists()
    report = json.loads((folder / "report.json").read_text())
    assert report["steps"] == 5 and report["base"] == base.path.name
    assert report["heldout_loss"]["trained"] < report["heldout_loss"]["base"]
    assert report["parity"]["passed"] and report["parity"]["mean"] < 1e-4 < report["parity"]["effect"]
    assert report["predicted_bytes"] > 0 and report["measured_bytes"] > 0
    assert report["task_score"] is not None and report["general_loss"] is not None
    manifest = read_directory(folder, load_served(base, dtype="float32", device="cpu").shape).manifest
    assert manifest.trained_on is not None and manifest.trained_on.weights == report["base_weights"]
    assert manifest.base == base.path.name, "a name, not somebody's path"
    again = read_config(folder / "config.yaml")
    assert again.steps == read_config(path).steps
    with pytest.raises(OutputInTheWay, match="exists"):
        run(path)


def test_a_killed_run_goes_on_to_the_same_weights_bit_by_bit(base: Source, tmp_path: Path) -> None:
    """Killed in step 4, resumed from the checkpoint of step 2: LoRA with dropout, and QLoRA."""
    changes: dict[str, dict[str, Any]] = {
        "lora": {"method": "lora", "adapter": {"dropout": 0.2, "saved_as": "float32"}},
        "qlora": {"method": "qlora", "adapter": {"saved_as": "float32"}, "optimizer": {"name": "adamw_8bit"}},
    }
    for kind in ("whole", "killed"):
        (tmp_path / kind).mkdir()
    paths = {
        (kind, name): written(tmp_path / kind, base, name, **change)
        for kind in ("whole", "killed")
        for name, change in changes.items()
    }
    killed = [str(paths["killed", name]) for name in changes]
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.killed", "4", *killed]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    for name in changes:
        path = paths["killed", name]
        assert work_folder(path.parent / name).exists() and not (path.parent / name).exists()
        with pytest.raises(OutputInTheWay, match="--resume"):
            run(path)
        resumed, whole = run(path, resume=True), run(paths["whole", name])
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (resumed / file).read_bytes() == (whole / file).read_bytes(), f"{name}: {file}"
        assert steps(resumed) == steps(whole) == [1, 2, 2, 3, 4, 4, 5, 5], "each step once, and its evaluation"


def steps(folder: Path) -> list[float]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Deaf:
    """A serving path to which every token is as likely as the next, whatever the adapter."""

    def logprobs(self, adapter: Path | None, rows: Any, *, dtype: str, quantization: str | None) -> list[list[float]]:
        return [[-1.0] * (len(row) - 1) for row in rows]


def test_an_adapter_that_is_served_otherwise_is_kept_and_complained_about(base: Source, tmp_path: Path) -> None:
    path = written(tmp_path, base, "out", gate={"dtype": "float32"})
    with pytest.raises(GateFailed):
        run(path, serve=Deaf())
    assert not json.loads((tmp_path / "out" / "report.json").read_text())["parity"]["passed"]


NOWHERE = Source("nowhere", Path("no-such-base"))


def test_bad_data_is_told_before_the_base_is_looked_for(tmp_path: Path) -> None:
    path = written(tmp_path, NOWHERE, "out")
    (tmp_path / "train.jsonl").write_text('{"prompt": 1}\n')
    with pytest.raises(DataInvalid, match="train.jsonl"):
        run(path)
    assert not list(tmp_path.glob(".out*"))


def test_what_the_cpu_cannot_do_is_told_before_the_data_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, NOWHERE, "out", optimizer={"name": "paged_adamw_8bit"})
    with pytest.raises(ConfigInvalid, match="paged_adamw_8bit moves states .* Use adamw_8bit or adamw"):
        run(path)
    with pytest.raises(ConfigInvalid, match="device: meta cannot be trained on. Write auto, cpu or cuda"):
        run(written(tmp_path, NOWHERE, "out", device="meta"))


def test_targets_that_the_base_has_not_are_told_before_it_is_loaded(base: Source, tmp_path: Path) -> None:
    path = written(tmp_path, base, "out", adapter={"targets": ["query"]})
    with pytest.raises(ConfigInvalid, match="adapter.targets: the base has no query"):
        run(path)
    assert not list(tmp_path.glob(".out*"))


def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT)])
    path = written(tmp_path, NOWHERE, "out", track=["trackio"])
    with pytest.raises(MissingExtra, match=r"'\.\[track\]'"):
        run(path)
