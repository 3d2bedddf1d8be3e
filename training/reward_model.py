"""A reward model at work: loaded on the base it was trained on, it gives every token sequence one number.

Owns the score head, and the writing and strict loading of the folder that training/reward_folder.py describes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters.checkpoint import read_directory
from adapters.errors import InvalidAdapter
from loader import tensors
from loader.discover import shape_of
from loader.source import Source
from training import base
from training.base import Loaded
from training.config import TrainConfig
from training.errors import RewardModelInvalid
from training.export import TrainedBase, file_dtype, write_adapter, write_model
from training.quiet import libraries_quiet
from training.reward_folder import HEAD, RewardCard, read_card, write_card

SCORE = "score"
"""The head's name in transformers' sequence classifiers."""
WEIGHT = f"{SCORE}.weight"


class RewardModel:
    """Scores token sequences with `model`, a sequence classifier with one label, `batch` of them at a time."""

    def __init__(self, model: nn.Module, loaded: Loaded, batch: int) -> None:
        self._model, self._loaded, self._batch = model, loaded, batch
        self._padding = pad_with(loaded)
        # The classifier scores the last token that is no padding.
        cast(Any, model).config.get_text_config().pad_token_id = self._padding

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """One number for each row of token ids; higher is better."""
        training = self._model.training
        self._model.eval()
        scores: list[float] = []
        for start in range(0, len(rows), self._batch):
            scores += self._scored(rows[start : start + self._batch])
        self._model.train(training)
        return scores

    def _scored(self, rows: Sequence[Sequence[int]]) -> list[float]:
        longest = max(map(len, rows))
        device = self._loaded.device
        ids = torch.tensor([[*row, *[self._padding] * (longest - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._loaded.autocast):
            logits: Tensor = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits[:, 0].float().tolist()


def pad_with(loaded: Loaded) -> int:
    """A token that ends no answer. Many tokenizers pad with the end of a turn, which the score must be able to see."""
    tokenizer = loaded.tokenizer
    ends = {tokenizer.eos_token_id}
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    free = (token for token in candidates if isinstance(token, int) and token not in ends)
    return next(free, cast(int, tokenizer.eos_token_id))


def write(model: nn.Module, loaded: Loaded, config: TrainConfig, folder: Path, trained: TrainedBase) -> None:
    """Write what `objective: reward` trained, in the precision of `training.export.file_dtype`; see reward_folder.py.

    A whole model is cast: use it no more.
    """
    dtype = file_dtype(config, loaded.source)
    weights: Literal["adapter", "model"] = "adapter"
    if isinstance(model, PeftModel):
        write_adapter(model, config, folder, dtype, trained)
        _write_head(model, folder)
    else:
        weights = "model"
        write_model(cast(PreTrainedModel, model), loaded.tokenizer, folder, dtype)
    write_card(folder, RewardCard(trained.id, trained.weights, trained.quantization or "none", weights))


def _write_head(model: nn.Module, folder: Path) -> None:
    """Write the trained score head of a grafted classifier beside its adapter, in float32."""
    heads = [weight for name, weight in model.named_parameters() if weight.requires_grad and f".{SCORE}." in name]
    assert len(heads) == 1, "a grafted classifier has one trained head"
    save_file({WEIGHT: heads[0].detach().float().cpu().contiguous()}, folder / HEAD, metadata={"format": "pt"})


def load(config: TrainConfig, loaded: Loaded) -> RewardModel:
    """The reward model in `config.reward.model`, on a copy of the base in the precision it was trained in.

    Whether the base is the right one is `training.reward_folder.check_base`'s to say, before anything is loaded.
    Raises RewardModelInvalid.
    """
    assert config.reward.model is not None, "the config is refused without it"
    folder = config.reward.model
    card = read_card(folder)
    classifier = _classifier(config, loaded, folder, card)
    model: nn.Module = classifier.model
    if card.weights == "adapter":
        model = _with_adapter(classifier.model, folder, card)
        _put_head(classifier.model, folder)
    model.requires_grad_(False)
    model.eval()
    return RewardModel(model, classifier, max(config.steps.micro_batch, config.sampling.completions))


def _classifier(config: TrainConfig, loaded: Loaded, folder: Path, card: RewardCard) -> Loaded:
    """The base with a score head that is still random, or the whole model in `folder`."""
    method = "lora" if card.quantization is None else "qlora"
    told = {"objective": "reward", "method": method, "quantization": card.quantization}
    source = loaded.source
    if card.weights == "model":
        source = Source(card.base, folder)
        if not any(tensor.name == WEIGHT for tensor in tensors.stored(folder)):
            raise RewardModelInvalid(folder, f"it holds no {WEIGHT}", "Use what `objective: reward` wrote.")
    return base.load(config.model_copy(update=told), source)


def _with_adapter(model: PreTrainedModel, folder: Path, card: RewardCard) -> nn.Module:
    """The adapter goes through the server's strict reader first, so nothing unexpected reaches PEFT."""
    try:
        checkpoint = read_directory(folder, shape_of(model, card.base))
    except InvalidAdapter as error:
        raise RewardModelInvalid(folder, str(error).rstrip("."), "Train it again on this base.") from None
    settings = json.loads(checkpoint.config) | {"task_type": None, "base_model_name_or_path": None}
    with libraries_quiet():
        grafted = get_peft_model(model, LoraConfig(**settings))
    assert isinstance(grafted, PeftModel)
    set_peft_model_state_dict(grafted, load_file(checkpoint.weights))
    return grafted


def _put_head(model: PreTrainedModel, folder: Path) -> None:
    head = model.get_submodule(SCORE)
    assert isinstance(head, nn.Linear)
    try:
        held = load_file(folder / HEAD)
    except SafetensorError as error:
        raise RewardModelInvalid(folder, f"its {HEAD} is damaged: {error}", "Copy the whole folder again.") from None
    weight = held.get(WEIGHT)
    expected = list(head.weight.shape)
    if len(held) != 1 or weight is None or list(weight.shape) != expected:
        fix = "Train it again on this base."
        raise RewardModelInvalid(folder, f"its {HEAD} does not hold {WEIGHT} of shape {expected} alone", fix)
    if not torch.isfinite(weight).all():
        raise RewardModelInvalid(folder, f"its {HEAD} holds values that are not finite", "Train it again.")
    head.weight = nn.Parameter(weight.float().to(head.weight.device), requires_grad=False)
