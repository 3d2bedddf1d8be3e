"""Reads a YAML file into a TrainConfig, or lists every fault of it in words.

Owns the reading. Unknown keys are errors that suggest the nearest name, because other trainers ignore a mistyped
quantization key and silently train something else. Imports no torch.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from training.config import TrainConfig
from training.errors import ConfigInvalid

FOREIGN_KEYS = {
    "bnb_4bit_quant_type": "quantization",
    "bnb_4bit_quantization_type": "quantization",
    "gradient_accumulation_steps": "steps.batch, the examples of a whole step",
    "gradient_checkpointing": "steps.checkpointing",
    "load_in_4bit": "method: qlora",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "max_length": "data.max_tokens",
    "max_seq_length": "data.max_tokens",
    "num_train_epochs": "steps.epochs",
    "output_dir": "output",
    "per_device_train_batch_size": "steps.micro_batch",
    "r": "adapter.rank",
    "target_modules": "adapter.targets",
    "use_dora": "method: dora",
    "warmup_ratio": "optimizer.warmup",
}
"""Other trainers' keys, and what they are called here."""
FOREIGN_VALUES = {
    "objective": {
        "ppo": "objective: ppo is not offered. Write rloo or grpo: they learn from the same reward.model, and compare "
        "the answers to one prompt with each other where ppo trains a second model of the base's size to guess values.",
        "rlhf": "objective: rlhf is two runs here. Train a reward model with reward, then write rloo or grpo with "
        "reward.model.",
        "kto": "objective: kto is not offered. Write dpo, which needs a preferred and a worse answer to each prompt.",
        "orpo": "objective: orpo is not offered. Write dpo; on a base that is fine-tuned already it needs no sft loss.",
        "rm": "objective: rm is called reward here.",
        "reward_model": "objective: reward_model is called reward here.",
    },
}
"""Other trainers' values by our key, and the message that says what to write instead."""


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The config in `path`, with overrides such as `steps.epochs=2` on top. Raises ConfigInvalid with every fault."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        fault = f"it cannot be read: {error.strerror}. Give the path of a YAML file."
        raise ConfigInvalid(str(path), [fault]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigInvalid(str(path), [f"it is not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(values, dict):
        raise ConfigInvalid(str(path), ["it holds no `key: value` lines. It needs at least output and data.train."])
    for override in overrides:
        _apply(values, override)
    return parse_config(values, str(path))


def parse_config(values: Mapping[str, Any], source: str = "The config") -> TrainConfig:
    """The config in a parsed mapping; `source` names it in errors. Raises ConfigInvalid with every fault."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        faults = [line for item in error.errors() for line in _describe(item)]
        raise ConfigInvalid(source, faults) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigInvalid(f"--set {override}", ["it is no KEY=VALUE. Write for example --set steps.epochs=2."])
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigInvalid(f"--set {override}", [f"{section} is no section."])
        values = inner
    values[last] = yaml.safe_load(text)


def _describe(item: Mapping[str, Any]) -> list[str]:
    """A pydantic error as lines for people: where, what is wrong, what to write."""
    path = tuple(part for part in item["loc"] if isinstance(part, str) and not part.startswith(("literal[", "tuple[")))
    where = ".".join(path)
    if item["type"] == "extra_forbidden":
        return [f"{where}: unknown key. {_suggestion(path)}"]
    if item["type"] == "missing":
        return [f"{where}: missing. Every config needs it."]
    if item["type"] == "value_error":
        return str(item["ctx"]["error"]).splitlines()
    known = FOREIGN_VALUES.get(where, {}).get(str(item["input"]))
    return [known or f"{where}: {item['msg']}, got {item['input']!r}."]


def _suggestion(path: Sequence[str]) -> str:
    """A sentence with the key that was probably meant: one of the same section, else of any."""
    if path[-1] in FOREIGN_KEYS:
        return f"Did you mean {FOREIGN_KEYS[path[-1]]}?"
    section: type[BaseModel] = TrainConfig
    for part in path[:-1]:
        section = _section(section, part) or section
    here = list(section.model_fields)
    close = difflib.get_close_matches(path[-1], here, n=1)
    if close:
        return f"Did you mean {'.'.join([*path[:-1], close[0]])}?"
    everywhere = dict(_all_keys(TrainConfig))
    close = difflib.get_close_matches(path[-1], list(everywhere), n=1)
    return f"Did you mean {everywhere[close[0]]}?" if close else f"Known here: {', '.join(here)}."


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section that a key of `model` holds, optional ones too."""
    field = model.model_fields.get(name)
    if field is None:
        return None
    kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key by its last name, with its full path."""
    for name in model.model_fields:
        yield name, prefix + name
        inner = _section(model, name)
        if inner is not None:
            yield from _all_keys(inner, f"{prefix}{name}.")
