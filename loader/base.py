"""A loaded base: transformers' model and tokenizer, on its device, in its precision, and the facts about it.

Owns `load` and `Base`. Knows nothing of adapters, attention implementations or HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from loader import suitability
from loader.discover import linear_modules, shape_of
from loader.errors import UnsupportedBase
from loader.progress import Progress, ignore
from loader.shape import BaseShape
from loader.source import Source

DTYPES: Mapping[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class Base:
    """One resident base model. `model` is in eval mode, without gradients; `id` is the name clients see."""

    id: str
    source: Source
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    shape: BaseShape
    device: torch.device
    dtype: torch.dtype
    quantization: str | None
    eos_token_ids: frozenset[int]
    max_model_len: int
    linears: Mapping[str, nn.Module] = field(repr=False)


def load(
    source: Source,
    *,
    dtype: str = "bfloat16",
    quantization: str | None = None,
    device: str = "auto",
    progress: Progress = ignore,
) -> Base:
    """Load the base in `source` (see `loader.source.resolve`) for serving.

    `dtype` is one of DTYPES; `device` is a torch device or "auto" (the first CUDA device, else the CPU).
    Raises UnsupportedBase for an architecture or precision that cannot be served.
    """
    where = _device(device)
    precision = _dtype(dtype)
    config = suitability.config_of(source.path)
    progress(f"loading {source.id}", None)
    tokenizer = _tokenizer(source)
    model = _model(source, precision, where)
    suitability.check_model(model)
    return Base(
        id=source.id,
        source=source,
        model=model,
        tokenizer=tokenizer,
        shape=shape_of(model, source.id),
        device=where,
        dtype=precision,
        quantization=quantization,
        eos_token_ids=_eos_token_ids(model, tokenizer),
        max_model_len=suitability.max_model_len(config),
        linears=dict(linear_modules(model)),
    )


def _model(source: Source, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    model = cast(
        PreTrainedModel,
        AutoModelForCausalLM.from_pretrained(
            source.path, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ),
    )
    model.requires_grad_(False)
    nn.Module.to(model, device)
    model.eval()
    return model


def _tokenizer(source: Source) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise UnsupportedBase(f"The tokenizer of {source.id} cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise UnsupportedBase(f"{source.id} has no fast tokenizer. Save it once with a tokenizer.json.")
    return cast(PreTrainedTokenizerFast, tokenizer)


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Every id that ends a generation; models keep them in up to three places."""
    generation: Any = getattr(model, "generation_config", None)
    named = (
        getattr(generation, "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    )
    found: set[int] = set()
    for value in named:
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UnsupportedBase(f"--dtype {name!r} is not one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnsupportedBase(f"--device {name!r} is not a device. Give auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedBase(f"--device {name} was given, but torch sees no CUDA device. Give --device cpu.")
    return device
