"""Writes trained weights as files: an adapter in PEFT's format as the server reads it, or a whole model.

Owns tensor names, precisions and the record of the base. Knows nothing of how they were trained.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from adapters import config as config_file
from adapters import header
from adapters.header import TensorSpec
from adapters.provenance import QUANTIZATION, WEIGHTS
from loader.source import Source
from training.config import TrainConfig
from training.graft import ADAPTER
from training.quiet import libraries_quiet

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_NEVER_ROUNDED = ".lora_magnitude_vector."
"""DoRA's magnitude scales the base's own output: rounded to bf16, it would change it by up to 0.4 %."""


@dataclass(frozen=True, slots=True)
class TrainedBase:
    """The base that a run trained on, as it is recorded in the files.

    `weights` is its fingerprint (loader/fingerprint.py), `quantization` its 4-bit type while training, or None.
    """

    id: str
    weights: str
    quantization: str | None


def file_dtype(config: TrainConfig, source: Source) -> torch.dtype:
    """The precision of the files: the config's for an adapter, the base's own for a whole model."""
    name = config.adapter.saved_as
    if config.method == "full":
        written = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
        name = written.get("dtype") or written.get("torch_dtype") or name
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def round_weights(model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> None:
    """Round the trained weights to the precision of the files, so that what is evaluated is what will be served."""
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(_precision(name, config, dtype)).to(weight.dtype)


def write_adapter(model: PeftModel, config: TrainConfig, folder: Path, dtype: torch.dtype, base: TrainedBase) -> None:
    """Write PEFT's two files, in `dtype` except where `_precision` says float32. Leaves out a reward model's head."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad and ".lora_" in name:
            plain = name.replace(f".{ADAPTER}.weight", "" if _NEVER_ROUNDED in name else ".weight")
            tensors[plain] = weight.detach().to("cpu", _precision(name, config, dtype)).contiguous()
    record = {WEIGHTS: base.weights, QUANTIZATION: base.quantization or "none"}
    _save(tensors, folder / header.FILE, record)
    text = json.dumps(_adapter_config(model, base.id), indent=2, sort_keys=True)
    (folder / config_file.FILE).write_text(text + "\n", encoding="utf-8")


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, dtype: torch.dtype) -> None:
    """Write a fully fine-tuned model as a directory that `--base` takes. Casts it in place: do not use it after."""
    module: nn.Module = model
    module.to(dtype=dtype)
    with libraries_quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Unlike the library's, equal tensors make equal bytes: it shuffles its metadata."""
    specs = {
        name: TensorSpec(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)
        for name, tensor in sorted(tensors.items())
    }
    head, _ = header.write_header(specs, metadata)
    with path.open("wb") as file:
        file.write(head)
        for name in specs:
            file.write(tensors[name].view(torch.uint8).numpy().tobytes())


def _adapter_config(model: PeftModel, base: str) -> dict[str, Any]:
    settings = copy.copy(model.peft_config[ADAPTER])
    settings.base_model_name_or_path = base
    settings.inference_mode = True
    values: dict[str, Any] = settings.to_dict()
    # Sets have another order in each process.
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
    values["modules_to_save"] = None  # a reward model's head lies in a file of its own
    if values["task_type"] != "CAUSAL_LM":
        values["task_type"] = None
    return values


def _precision(name: str, config: TrainConfig, dtype: torch.dtype) -> torch.dtype:
    """The precision in which a weight is saved: `dtype`, or float32 where rounding does harm.

    PiSSA's two halves are large and nearly cancel: rounded, little would be left of their difference.
    """
    if _NEVER_ROUNDED in name or (config.adapter.init == "pissa" and ".lora_" in name) or "score." in name:
        return torch.float32
    return dtype
