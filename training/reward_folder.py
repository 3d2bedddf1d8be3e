"""The folder of a reward model: its files, and the checks that need no weights.

Owns `reward.json` and the list of files beside it. A reward model is an adapter (or a whole model) and a score head:

    reward.json                  what this is, and the base's name, fingerprint and quantization
    adapter_config.json          as PEFT writes them: the adapter alone
    adapter_model.safetensors
    score.safetensors            `score.weight`, [1, hidden], float32

or, after a full fine-tune, `config.json` and `model.safetensors` of a sequence classifier in place of the last three.
Imports no torch.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loader.digests import is_digest
from training.errors import RewardModelInvalid

CARD = "reward.json"
HEAD = "score.safetensors"
FORMAT = "rootstock-reward-1"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", HEAD)
MODEL_FILES = ("config.json",)
_MODEL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class RewardCard:
    """What `reward.json` says. `base_weights` is a fingerprint; `base_quantization` is "none", "nf4" or "fp4"."""

    base: str
    base_weights: str
    base_quantization: str
    weights: Literal["adapter", "model"]

    @property
    def quantization(self) -> str | None:
        """The base's 4-bit type, or None."""
        return None if self.base_quantization == "none" else self.base_quantization


def write_card(folder: Path, card: RewardCard) -> None:
    text = json.dumps({"format": FORMAT, **asdict(card)}, indent=2)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def read_card(folder: Path) -> RewardCard:
    """Read `reward.json` of `folder` and check that all files are there. Raises RewardModelInvalid."""
    if not folder.is_dir():
        raise RewardModelInvalid(folder, "there is no such folder", "Name the output folder of `objective: reward`.")
    path = folder / CARD
    if not path.is_file():
        raise _not_a_reward_model(folder)
    card = _parsed(folder, path)
    needed = list(ADAPTER_FILES if card.weights == "adapter" else MODEL_FILES)
    if card.weights == "model" and not any((folder / name).is_file() for name in _MODEL_WEIGHTS):
        needed.append(_MODEL_WEIGHTS[0])
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        pickles = _pickles(folder)
        if pickles:
            raise RewardModelInvalid(folder, f"it holds {pickles[0]}, a pickle, in place of {missing[0]}", _NO_PICKLES)
        raise RewardModelInvalid(folder, f"it holds no {', '.join(missing)}", _WHOLE)
    return card


def check_base(folder: Path, card: RewardCard, base: str, weights: str) -> None:
    """Raises RewardModelInvalid unless the reward model was trained on the base with the fingerprint `weights`.

    A reward model reads token ids, so it must know them as the base that writes them does.
    """
    if card.base_weights != weights:
        problem = (
            f"it was trained on another base. Trained on: {card.base} ({card.base_weights}). "
            f"This run's base: {base} ({weights})"
        )
        fix = f"Set base to {card.base}, or train a reward model on {base} with `objective: reward`."
        raise RewardModelInvalid(folder, problem, fix)


_WHOLE = "Copy the whole output folder of `objective: reward`."
_NO_PICKLES = "Pickles can run code when they are opened. Use the folder that `objective: reward` wrote."


def _not_a_reward_model(folder: Path) -> RewardModelInvalid:
    """The error for a folder without `reward.json`: it says what the folder seems to be."""
    fix = "Name the output folder of `objective: reward`."
    if (folder / "adapter_config.json").is_file():
        return RewardModelInvalid(folder, "it holds an adapter without a score head", fix)
    if (folder / "config.json").is_file():
        return RewardModelInvalid(folder, f"it holds a model, but no {CARD}", fix)
    pickles = _pickles(folder)
    if pickles:
        return RewardModelInvalid(folder, f"it holds {pickles[0]}, a pickle", _NO_PICKLES)
    return RewardModelInvalid(folder, f"it holds no {CARD}", fix)


def _pickles(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)


def _parsed(folder: Path, path: Path) -> RewardCard:
    damaged = RewardModelInvalid(folder, f"its {CARD} is damaged", _WHOLE)
    try:
        with path.open("rb") as file:
            values: Any = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError):
        raise damaged from None
    if not isinstance(values, dict):
        raise damaged
    if values.pop("format", None) != FORMAT:
        fix = "Train it again with this version of rootstock."
        raise RewardModelInvalid(folder, f"its {CARD} is of another format than {FORMAT}", fix)
    whole = values.keys() == set(RewardCard.__slots__) and all(isinstance(value, str) for value in values.values())
    if not whole or not is_digest(values["base_weights"]):
        raise damaged
    if values["base_quantization"] not in ("none", "nf4", "fp4") or values["weights"] not in ("adapter", "model"):
        raise damaged
    return RewardCard(**values)
