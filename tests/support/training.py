"""A tiny base and tiny data for training runs: examples of random letters, a config that is over in seconds."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loader.source import Source
from training.base import load
from training.config import TrainConfig
from training.config_file import parse_config
from training.data.examples import Example, Prepared, Split
from training.graft import graft
from training.observer import Observer, SilentObserver
from training.report import DataUsed
from training.trainers.common import Job

METHODS: Mapping[str, Mapping[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "rslora": {"method": "lora", "adapter": {"rslora": True}},
    "lora+": {"method": "lora", "adapter": {"lora_plus_ratio": 4}},
    "pissa": {"method": "lora", "adapter": {"init": "pissa"}},
    "layers": {"method": "lora", "adapter": {"layers": [1], "targets": ["q_proj", "down_proj"]}},
    "dora": {"method": "dora"},
    "qlora": {"method": "qlora"},
    "qlora-pissa": {"method": "qlora", "adapter": {"init": "pissa", "rslora": True}},
    "qlora-fp4-8bit": {"method": "qlora", "quantization": "fp4", "optimizer": {"name": "adamw_8bit"}},
    "qdora": {"method": "qdora"},
}
"""Every method, and every option of an adapter at least once."""


def config(output: Path, name: str = "lora", **changes: Any) -> TrainConfig:
    """Four steps with an evaluation in the middle; `changes` are sections or keys on top.

    In float32 also where the processor has instructions for bf16, so that what is compared does not round.
    """
    values: dict[str, Any] = {
        "precision": "float32",
        "output": str(output),
        "data": {"train": "unused.jsonl"},
        "adapter": {"rank": 4, "alpha": 8, "saved_as": "float32"},
        "steps": {
            "batch": 4,
            "micro_batch": 4,
            "max_steps": 4,
            "eval_every": 2,
            "save_every": 4,
            "checkpointing": False,
        },
        "optimizer": {"learning_rate": 0.01},
    }
    for more in (METHODS[name], changes):
        for key, value in more.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, Mapping) else value
    return parse_config(values)


def prepared(count: int = 24, heldout: int = 4) -> Prepared:
    """Examples of different lengths; the first five tokens of each do not count."""
    draw = random.Random(1)
    examples = [_example(draw) for _ in range(count + heldout)]
    used = [DataUsed(name, "0" * 64, number, 0, 0) for name, number in (("train", count), ("heldout", heldout))]
    return Prepared(Split(tuple(examples[:count]), used[0]), Split(tuple(examples[count:]), used[1]), "text")


def _example(draw: random.Random) -> Example:
    length = draw.randrange(8, 24)
    ids = tuple(draw.randrange(ord("a"), ord("k")) for _ in range(length))
    return Example(ids, tuple(at >= 5 for at in range(length)), 5, None)


def job(
    told: TrainConfig, base: Source, folder: Path, observer: Observer | None = None, data: Prepared | None = None
) -> Job:
    """A job that is ready for a trainer."""
    loaded = load(told, base)
    folder.mkdir(parents=True, exist_ok=True)
    return Job(graft(loaded.model, told), loaded, data or prepared(), told, folder, observer or SilentObserver())
