"""A loaded base: transformers' model and tokenizer, on its device, in its precision, and the facts about it.

Owns `load` and `Base`. Knows nothing of adapters, attention implementations or HTTP.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from loader import pages, suitability
from loader.discover import linear_modules, shape_of
from loader.errors import UnsupportedBase
from loader.pointwise import speed_up_pointwise
from loader.product import FastLinear, product_dtype, speed_up_linears
from loader.progress import Progress, ignore
from loader.shape import BaseShape
from loader.source import Source
from native.kernels import Kernels
from native.tables import DTYPE as KERNELS_DTYPE

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
    linears: Mapping[str, nn.Linear | FastLinear] = field(repr=False)
    kernels: Kernels | None = None

    def weight(self, path: str) -> torch.Tensor:
        """The dense weight `[out, in]` of the linear at `path`, in the base's dtype; not to be written to.

        It is pristine: resident weights never change, a merged layer stands beside them. Quantized layers give what
        their 4 bits stand for, packed or not.
        """
        weight = self.linears[path].weight
        if self.quantization is not None:
            from loader import quantize

            if quantize.is_quantized(weight):
                return quantize.dense(weight).to(self.dtype)
        return weight.detach()

    @property
    def adapter_dtype(self) -> torch.dtype:
        """The precision in which adapters are multiplied, and so held."""
        return self.dtype if self.kernels else product_dtype(self.device, self.dtype)

    @property
    def head(self) -> str:
        """The path of the linear that turns hidden states into logits."""
        output = self.model.get_output_embeddings()
        return next(path for path, module in self.linears.items() if module.weight is output.weight)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of some tokens, special ones left out and nothing tidied: more tokens never make it shorter."""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def resident_bytes(self) -> int:
        """Bytes that the model's weights take in memory, shared storages once, quantization state included."""
        tensors: list[torch.Tensor] = [*self.model.parameters(), *self.model.buffers()]
        if self.quantization is not None:
            from loader import quantize

            tensors += [extra for weight in list(tensors) for extra in quantize.state_tensors(weight)]
        return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}.values())


def load(
    source: Source,
    *,
    dtype: str = "bfloat16",
    quantization: str | None = None,
    device: str = "auto",
    kernels: Kernels | None = None,
    progress: Progress = ignore,
) -> Base:
    """Load the base in `source` (see `loader.source.resolve`) for serving.

    `dtype` is one of DTYPES; `quantization` is None, "nf4" or "fp4"; `device` is a torch device or "auto" (the
    first CUDA device, else the CPU). `kernels` are used on the CPU where they know the precision.
    Raises UnsupportedBase for an architecture or precision that cannot be served.
    """
    where = device_named(device)
    precision = _dtype(dtype)
    config = suitability.config_of(source.path)
    if where.type != "cpu" or precision != KERNELS_DTYPE:
        kernels = None
    progress(f"loading {source.id}", None)
    tokenizer = tokenizer_of(source)
    model = _model(source, precision, quantization, where, kernels)
    suitability.check_model(model)
    speed_up_linears(model, kernels)
    speed_up_pointwise(model, kernels)
    linears = dict(linear_modules(model))
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
        linears=linears,
        kernels=kernels,
    )


def _model(
    source: Source, dtype: torch.dtype, quantization: str | None, device: torch.device, kernels: Kernels | None
) -> PreTrainedModel:
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "trust_remote_code": False}
    if quantization is not None:
        # bitsandbytes takes seconds to import, and most bases are not quantized. On CPUs with AVX512-BF16 it warns that
        # a package of kernels is missing, which nothing here would use.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        from loader import quantize

        if quantization not in quantize.TYPES:
            raise UnsupportedBase(f"--quantization {quantization!r} is not one of {', '.join(quantize.TYPES)}.")
        options["quantization_config"] = quantize.config_for(quantization, dtype)
    if quantization is not None or device.type != "cpu":
        # Straight to the device, one tensor at a time. On the CPU the file is mapped, and copied once, below.
        options["device_map"] = {"": device}
    with quiet():
        model = cast(
            PreTrainedModel, AutoModelForCausalLM.from_pretrained(source.path, use_safetensors=True, **options)
        )
    model.requires_grad_(False)
    model.eval()
    if quantization is not None:
        quantize.settle(model, kernels)
    if device.type == "cpu":
        pages.move(model)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars: ours are drawn by whoever passed `progress`."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def tokenizer_of(source: Source) -> PreTrainedTokenizerFast:
    """The base's own fast tokenizer; raises UnsupportedBase when there is none."""
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


def device_named(name: str) -> torch.device:
    """A torch device by name; "auto" is the first CUDA device, else the CPU. Raises UnsupportedBase."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnsupportedBase(f"--device {name!r} is not a device. Give auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedBase(f"--device {name} was given, but torch sees no CUDA device. Give --device cpu.")
    return device
