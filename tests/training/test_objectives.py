"""Every method with every objective of preferences and reinforcement, on a base of two layers: it runs, its gradients
reach every layer, it resumes to the same bits, and what it writes is read by whoever needs it."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import save_file

from adapters.checkpoint import read_directory
from loader import base as served
from loader.discover import shape_of
from loader.source import Source
from tests.support.tiny_training import (
    FAVOURITE,
    NO_WEIGHTS,
    CutAfter,
    Gradients,
    config,
    job,
    pairs,
    prompts,
    two_layer_base,
)
from training import reward_model
from training.base import load
from training.config import TrainConfig
from training.errors import ConfigInvalid, RewardModelInvalid
from training.export import TrainedBase, write_adapter, write_model
from training.metrics_file import MetricsFile
from training.reward_folder import read_card
from training.reward_model import RewardModel
from training.trainers import dpo, reward, rl
from training.trainers.common import Job, Outcome
from training.trainers.weights import trainable_parameters

METHODS = ("lora", "qlora", "dora", "qdora", "full")
TRAINERS: dict[str, Callable[[Job], Outcome]] = {
    "dpo": dpo.train,
    "reward": reward.train,
    "grpo": rl.train,
    "rloo": rl.train,
}
WATCHED = {
    "dpo": ("loss", "rewards/accuracies", "rewards/margins"),
    "reward": ("loss", "accuracy", "margin"),
    "grpo": ("reward", "kl", "completions/mean_length"),
    "rloo": ("reward", "kl", "completions/mean_length"),
}
"""What people look at, by the names in metrics.jsonl; the held-out figures have `eval_` before them."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return two_layer_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def taste(base: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that has learned to like FAVOURITE."""
    folder, work = tmp_path_factory.mktemp("taste"), tmp_path_factory.mktemp("work")
    steps = {"max_steps": 24, "batch": 16, "micro_batch": 16, "eval_every": 24, "checkpointing": False}
    told = config("lora", "reward", optimizer={"learning_rate": 2e-2}, steps=steps)
    trained = job(told, base, work, examples=96)
    outcome = reward.train(trained)
    assert outcome.metrics["heldout_accuracy"] > 0.8
    written(trained, folder)
    return folder


def written(done: Job, folder: Path) -> None:
    quantization = done.loaded.quantization
    reward_model.write(done.model, done.loaded, done.config, folder, TrainedBase("tiny", NO_WEIGHTS, quantization))


def records(folder: Path) -> list[dict[str, float]]:
    return list(MetricsFile(folder).records())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on more, and sums of several threads may differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("objective", TRAINERS)
@pytest.mark.parametrize("method", METHODS)
def test_trains_resumes_and_is_written(method: str, objective: str, base: Source, taste: Path, tmp_path: Path) -> None:
    told = config(method, objective, taste)
    observer = CutAfter(3, tmp_path / "whole", tmp_path / "cut")
    whole = job(told, base, tmp_path / "whole", observer)
    gradients = Gradients(whole.model)
    observer.at_evaluation = gradients.forget
    TRAINERS[objective](whole)
    assert not gradients.missed(), "an evaluation in the middle cuts nothing off"
    told_figures(objective, records(tmp_path / "whole"))

    resumed = job(told, base, tmp_path / "cut")
    TRAINERS[objective](resumed)
    ends = trainable_parameters(whole.model)
    assert all(torch.equal(ends[name], weight) for name, weight in trainable_parameters(resumed.model).items())
    trail = [[record["step"] for record in records(tmp_path / name)] for name in ("whole", "cut")]
    assert trail[0] == trail[1] == [1, 2, 2, 3, 3]
    counted = [
        [record["tokens"] for record in records(tmp_path / name) if "tokens" in record] for name in ("whole", "cut")
    ]
    assert counted[0] == counted[1]

    (tmp_path / "out").mkdir()
    (check_reward_model if objective == "reward" else check_served)(whole, tmp_path / "out")


def told_figures(objective: str, told: list[dict[str, float]]) -> None:
    steps = [record for record in told if "loss" in record]
    looks = [record for record in told if "eval_loss" in record]
    assert all(name in record for name in WATCHED[objective] for record in steps)
    assert all(f"eval_{name}" in record for name in WATCHED[objective] for record in looks)
    if objective == "dpo":
        assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4), "at first the model is its own reference"
        assert steps[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    if objective in ("grpo", "rloo"):
        assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-4)


def check_served(done: Job, folder: Path) -> None:
    """The serving path reads what was written."""
    model = done.loaded.model
    if done.config.method == "full":
        shape = shape_of(model, "tiny")
        write_model(model, done.loaded.tokenizer, folder, torch.float32)
        assert served.load(Source("tuned", folder), dtype="float32").shape.linears == shape.linears
        return
    base = TrainedBase("tiny", NO_WEIGHTS, done.loaded.quantization)
    write_adapter(done.model, done.config, folder, torch.float32, base)  # type: ignore[arg-type]
    plain = served.load(done.loaded.source, dtype="float32")
    manifest = read_directory(folder, plain.shape).manifest
    assert manifest.kind == ("dora" if done.config.method.endswith("dora") else "lora")
    assert len(manifest.grafts) == 4, "two linears of each layer"
    assert manifest.trained_on is not None and manifest.trained_on.weights == NO_WEIGHTS


def check_reward_model(done: Job, folder: Path) -> None:
    """What is read back gives the same scores, to the bit."""
    rows = [pair.prompt_ids + pair.chosen_ids for pair in pairs(3)]
    before = RewardModel(done.model, done.loaded, 2).score(rows)
    written(done, folder)
    assert read_card(folder).weights == ("model" if done.config.method == "full" else "adapter")
    assert reward_model.load(config("lora", "grpo", folder), done.loaded).score(rows) == before


def test_a_row_scores_the_same_alone_and_beside_longer_ones(base: Source, taste: Path, tmp_path: Path) -> None:
    told = config("lora", "grpo", taste)
    judge = reward_model.load(told, job(told, base, tmp_path).loaded)
    rows = [pair.prompt_ids + pair.chosen_ids for pair in pairs(3)] + [(98, 99, 97)]
    alone = [judge.score([row])[0] for row in rows]
    assert judge.score(rows) == pytest.approx(alone, abs=1e-5)
    assert judge.score([(98, 99)]) != judge.score([(98, 99, 258)]), "the end of an answer is seen"


def another_shape(folder: Path) -> None:
    save_file({"score.weight": torch.ones(1, 8)}, folder / "score.safetensors")


def not_a_number(folder: Path) -> None:
    save_file({"score.weight": torch.full((1, 64), torch.nan)}, folder / "score.safetensors")


def a_pickle_by_another_name(folder: Path) -> None:
    torch.save({"score.weight": torch.ones(1, 64)}, folder / "score.safetensors")


def another_adapter(folder: Path) -> None:
    save_file({"base_model.model.model.layers.0.q.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (another_shape, r"does not hold score.weight of shape \[1, 64\]"),
        (not_a_number, "not finite"),
        (a_pickle_by_another_name, "score.safetensors is damaged"),
        (another_adapter, "adapter_model.safetensors"),
    ],
)
def test_spoiled_weights_are_refused(
    spoil: Callable[[Path], None], said: str, base: Source, taste: Path, tmp_path: Path
) -> None:
    shutil.copytree(taste, tmp_path / "taste")
    spoil(tmp_path / "taste")
    told = config("lora", "grpo", tmp_path / "taste")
    with pytest.raises(RewardModelInvalid, match=said):
        reward_model.load(told, load(told, base))


def test_a_quantized_reward_model_keeps_its_head_and_its_gradients(base: Source) -> None:
    """The head is dense, and no layer is packed away from its gradients on CPUs with AVX512-BF16."""
    model = load(config("qlora", "reward"), base).model
    quantized = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(quantized) == 14 and "score" not in quantized
    assert not any(module.support_avx512bf16_for_cpu for module in quantized.values())


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_the_mean_reward_rises(objective: str, base: Source, taste: Path, tmp_path: Path) -> None:
    """Preferences make a reward model, and the reward model makes answers with more of what was preferred."""
    told = config(
        "lora",
        objective,
        taste,
        optimizer={"learning_rate": 3e-2, "schedule": "constant"},
        steps={"max_steps": 18, "batch": 32, "micro_batch": 32, "eval_every": 18, "checkpointing": False},
        sampling={"completions": 8, "max_new_tokens": 3, "beta": 0.01},
    )
    learner = job(told, base, tmp_path)
    before = favourites(learner)
    outcome = TRAINERS[objective](learner)
    assert outcome.metrics["eval_reward"] > outcome.metrics["base_reward"]
    rewards = [record["reward"] for record in records(tmp_path) if "reward" in record]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.3
    assert favourites(learner) > before


def favourites(learner: Job) -> float:
    """The mean probability of FAVOURITE as the first token of an answer."""
    ids = torch.tensor([prompt.ids for prompt in prompts(8, seed=9)])
    learner.model.eval()
    with torch.no_grad():
        logits = learner.model(input_ids=ids, use_cache=False).logits[:, -1]
    return float(logits.softmax(-1)[:, FAVOURITE].mean())


def test_dpo_parts_the_preferred_from_the_worse(base: Source, tmp_path: Path) -> None:
    steps = {"max_steps": 8, "batch": 8, "micro_batch": 8, "eval_every": 8, "checkpointing": False}
    told = config("lora", "dpo", optimizer={"learning_rate": 2e-2}, steps=steps)
    outcome = dpo.train(job(told, base, tmp_path))
    assert outcome.metrics["eval_rewards/margins"] > 0.2
    assert outcome.metrics["eval_rewards/accuracies"] >= 0.75


def test_prompts_that_fill_no_step_are_told(base: Source, taste: Path, tmp_path: Path) -> None:
    told: TrainConfig = config("lora", "grpo", taste, steps={"batch": 64})
    with pytest.raises(ConfigInvalid, match="16 prompts do not fill one step"):
        rl.train(job(told, base, tmp_path))
