"""Whole runs from files to folders: pairs make a reward model, the reward model and prompts make an adapter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.checkpoint import read_directory
from loader.skeleton import shape
from loader.source import Source
from tests.support.tiny_training import pairs, prompts, two_layer_base
from training.config import TrainConfig
from training.errors import RewardModelInvalid
from training.observer import SilentObserver
from training.reward_folder import read_card
from training.run import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, pairs and prompts."""
    folder = tmp_path_factory.mktemp("preferences")
    two_layer_base(folder / "base")
    lines = []
    for pair in pairs(20):
        chosen, rejected = (text(ids[:-1]) for ids in (pair.chosen_ids, pair.rejected_ids))
        lines.append({"prompt": text(pair.prompt_ids), "chosen": chosen, "rejected": rejected})
    write(folder / "pairs.jsonl", lines)
    write(folder / "prompts.jsonl", [{"prompt": prompt.text} for prompt in prompts(10)])
    return folder


def text(ids: tuple[int, ...]) -> str:
    return bytes(ids).decode()


def write(path: Path, lines: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(place: Path, output: str, objective: str, data: str, base: str = "base", **more: Mapping[str, Any]) -> Path:
    values = {
        "output": place / output,
        "base": str(place / base),
        "objective": objective,
        "data": {"train": place / data, "heldout_share": 0.2},
        "precision": "float32",
        "device": "cpu",
        "adapter": {"rank": 2, "targets": ("q_proj", "down_proj")},
        "steps": {"max_steps": 2, "batch": 4, "micro_batch": 4, "threads": 1, "checkpointing": False},
        **more,
    }
    told = TrainConfig.model_validate(values)
    before = torch.get_num_threads()
    try:
        return train(told, data_dir=place / "data", resume=None, observer=SilentObserver(), serve=None)
    finally:
        torch.set_num_threads(before)


def test_from_pairs_to_a_reward_model_to_an_adapter(place: Path) -> None:
    taste = run(place, "taste", "reward", "pairs.jsonl")
    card = read_card(taste)
    report = json.loads((taste / "report.json").read_text())
    assert (card.base_weights, card.quantization) == (report["base_weights"], None)
    assert 0 <= report["metrics"]["heldout_accuracy"] <= 1

    sampling = {"completions": 2, "max_new_tokens": 2}
    polite = run(place, "polite", "rloo", "prompts.jsonl", reward={"model": taste}, sampling=sampling)
    read_directory(polite, shape(Source("base", place / "base")))
    report = json.loads((polite / "report.json").read_text())
    assert {"base_reward", "eval_reward", "eval_kl"} <= report["metrics"].keys()
    assert f"| {report['metrics']['base_reward']:.3f} |" in (polite / "README.md").read_text()

    two_layer_base(place / "other", seed=4)
    with pytest.raises(RewardModelInvalid, match="trained on another base"):
        run(place, "never", "grpo", "prompts.jsonl", "other", reward={"model": taste}, sampling=sampling)
    with pytest.raises(RewardModelInvalid, match="an adapter without a score head"):
        run(place, "never", "grpo", "prompts.jsonl", reward={"model": polite}, sampling=sampling)
    assert not (place / "never").exists()


def test_dpo_writes_an_adapter_and_its_figures(place: Path) -> None:
    folder = run(place, "preferred", "dpo", "pairs.jsonl")
    read_directory(folder, shape(Source("base", place / "base")))
    metrics = json.loads((folder / "report.json").read_text())["metrics"]
    assert {"eval_rewards/accuracies", "eval_rewards/margins"} <= metrics.keys()
    assert "mean margin" in (folder / "README.md").read_text()
