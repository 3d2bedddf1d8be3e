"""A reward model: it scores token sequences, on the base it was trained on.

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
from training.base import LoadedBase
from training.config import TrainConfig
from training.errors import RewardModelInvalid
from training.eval_mode import eval_mode
from training.export import TrainedBase, file_dtype, write_adapter, write_model
from training.padding import pad
from training.quiet import libraries_quiet
from training.reward_folder import HEAD, RewardCard, read_card, write_card

SCORE = "score"
"""The head's name in transformers' sequence classifiers."""
WEIGHT = f"{SCORE}.weight"


class RewardModel:
    """Scores token sequences with `model`, a sequence classifier with one label, `batch` sequences at a time."""

    def __init__(self, model: nn.Module, loaded: LoadedBase, batch: int) -> None:
        self._model, self._loaded, self._batch = model, loaded, batch
        self._padding = padding_id(loaded)
        # The classifier scores the last token that is no padding.
        cast(Any, model).config.get_text_config().pad_token_id = self._padding

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """One number for each row of token ids; higher is better."""
        scores: list[float] = []
        with eval_mode(self._model):
            for start in range(0, len(rows), self._batch):
                scores += self._score_batch(rows[start : start + self._batch])
        return scores

    def _score_batch(self, rows: Sequence[Sequence[int]]) -> list[float]:
        device = self._loaded.device
        ids, mask = pad(rows, self._padding, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._loaded.autocast):
            logits: Tensor = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits[:, 0].float().tolist()


def padding_id(loaded: LoadedBase) -> int:
    """The id to pad with: one that ends no answer. Many tokenizers pad with their EOS, which the score must see."""
    tokenizer = loaded.tokenizer
    ends = {tokenizer.eos_token_id}
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    free = (token for token in candidates if isinstance(token, int) and token not in ends)
    return next(free, cast(int, tokenizer.eos_token_id))


def write(model: nn.Module, loaded: LoadedBase, config: TrainConfig, folder: Path, trained: TrainedBase) -> None:
    """Write a trained reward model in the precision of `training.export.file_dtype`; reward_folder.py has the layout.

    A whole model is cast in place: do not use it afterwards.
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
    """Write the score head of a grafted classifier beside its adapter, in float32."""
    heads = [weight for name, weight in model.named_parameters() if weight.requires_grad and f".{SCORE}." in name]
    assert len(heads) == 1, "a grafted classifier has one trained head"
    save_file({WEIGHT: heads[0].detach().float().cpu().contiguous()}, folder / HEAD, metadata={"format": "pt"})


def load(config: TrainConfig, loaded: LoadedBase) -> RewardModel:
    """Load the reward model in `config.reward.model`, on a copy of the base in the precision it was trained in.

    `training.reward_folder.check_base` must have accepted the base before. Raises RewardModelInvalid.
    """
    assert config.reward.model is not None, "the config is refused without it"
    folder = config.reward.model
    card = read_card(folder)
    classifier = _classifier(config, loaded, folder, card)
    model: nn.Module = classifier.model
    if card.weights == "adapter":
        model = _with_adapter(classifier.model, folder, card)
        _load_head(classifier.model, folder)
    model.requires_grad_(False)
    model.eval()
    return RewardModel(model, classifier, max(config.steps.micro_batch, config.sampling.completions))


def _classifier(config: TrainConfig, loaded: LoadedBase, folder: Path, card: RewardCard) -> LoadedBase:
    """The base with a random score head, or the whole model in `folder`."""
    method = "lora" if card.quantization is None else "qlora"
    changes = {"objective": "reward", "method": method, "quantization": card.quantization}
    source = loaded.source
    if card.weights == "model":
        source = Source(card.base, folder)
        if not any(tensor.name == WEIGHT for tensor in tensors.stored(folder)):
            raise RewardModelInvalid(folder, f"it holds no {WEIGHT}", "Use what `objective: reward` wrote.")
    return base.load(config.model_copy(update=changes), source)


def _with_adapter(model: PreTrainedModel, folder: Path, card: RewardCard) -> nn.Module:
    """`model` with the adapter in `folder`. The server's strict reader checks it first, so nothing odd reaches PEFT."""
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


def _load_head(model: PreTrainedModel, folder: Path) -> None:
    """Replace the score head of `model` by the one in `folder`."""
    head = model.get_submodule(SCORE)
    assert isinstance(head, nn.Linear)
    try:
        tensors_read = load_file(folder / HEAD)
    except SafetensorError as error:
        raise RewardModelInvalid(folder, f"its {HEAD} is damaged: {error}", "Copy the whole folder again.") from None
    weight = tensors_read.get(WEIGHT)
    expected = list(head.weight.shape)
    if len(tensors_read) != 1 or weight is None or list(weight.shape) != expected:
        fix = "Train it again on this base."
        raise RewardModelInvalid(folder, f"its {HEAD} does not hold {WEIGHT} of shape {expected} alone", fix)
    if not torch.isfinite(weight).all():
        raise RewardModelInvalid(folder, f"its {HEAD} holds values that are not finite", "Train it again.")
    head.weight = nn.Parameter(weight.float().to(head.weight.device), requires_grad=False)
