"""Loading a base for training: transformers' model and tokenizer, in a precision that suits the device.

Owns the choice of precision and the guard that keeps 4-bit layers trainable. Knows nothing of adapters or trainers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from loader.base import device_named, tokenizer_of
from loader.product import lacks_instructions
from loader.source import Source
from training import launcher
from training.config import TrainConfig
from training.errors import ConfigInvalid
from training.quiet import libraries_quiet


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base that is ready for training, all of its weights frozen.

    `dtype` is the dtype of its dense weights; with `autocast`, matrix products are in bf16. `num_parameters` is counted
    at loading, since sharding may later spread the weights over several processes.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    dtype: torch.dtype
    autocast: bool
    device: torch.device
    quantization: str | None
    source: Source
    num_parameters: int

    @property
    def precision(self) -> str:
        """The precision of products, as the report names it."""
        return "bfloat16" if self.autocast else "float32"


def load(config: TrainConfig, source: Source, *, sharded: bool = False) -> LoadedBase:
    """Load the base in `source` (see `loader.source.resolve`) for the method in `config`.

    Adapters train on a base in bf16 with products under autocast; where the device cannot multiply bf16, all is in
    fp32. A full fine-tune keeps its weights in fp32 either way: in bf16 most updates are too small to change them.
    A dense base that will be `sharded` stays in host memory until training.sharding.shard: no single GPU may fit it.
    Raises UnsupportedBase, or ConfigInvalid for a device that cannot do what is asked.
    """
    device = training_device(config)
    autocast = uses_bfloat16(config, device)
    dtype = torch.bfloat16 if autocast and config.method != "full" else torch.float32
    tokenizer = tokenizer_of(source)
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "trust_remote_code": False}
    if config.quantized is not None:
        from loader.quantize import config_for

        options["quantization_config"] = config_for(config.quantized, dtype)
    if config.quantized is not None or not (sharded or device.type == "cpu"):
        options["device_map"] = {"": device}
    model = _classifier(config, source, options) if config.objective == "reward" else _causal(source, options)
    model.requires_grad_(False)
    if config.quantized is not None:
        disable_repacking(model)
    return LoadedBase(model, tokenizer, dtype, autocast, device, config.quantized, source, model.num_parameters())


def _causal(source: Source, options: dict[str, Any]) -> PreTrainedModel:
    with libraries_quiet():
        loaded = AutoModelForCausalLM.from_pretrained(source.path, use_safetensors=True, **options)
    return cast(PreTrainedModel, loaded)


def _classifier(config: TrainConfig, source: Source, options: dict[str, Any]) -> PreTrainedModel:
    """The base with a score head in place of its language head; random unless the source is a reward model."""
    torch.manual_seed(config.steps.seed)
    try:
        with libraries_quiet():
            loaded = AutoModelForSequenceClassification.from_pretrained(
                source.path, use_safetensors=True, num_labels=1, **options
            )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        fault = f"objective: reward needs a base whose architecture can score text, and that of {source.id} cannot."
        raise ConfigInvalid("The config", [f"{fault} Choose another base."]) from None
    model = cast(PreTrainedModel, loaded)
    head = model.get_submodule("score")
    assert isinstance(head, nn.Linear)
    model.set_submodule("score", ScoreHead(head.weight.float()))
    return model


class ScoreHead(nn.Linear):
    """score = W h in float32, also under autocast: in bf16, scores around 4 would be steps of 1/32 apart."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight)

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.float(), self.weight.float())


def training_device(config: TrainConfig) -> torch.device:
    """The CPU, or the CUDA device that the trainer will take: the first, or the launcher's. Raises ConfigInvalid."""
    device = device_named(config.device)
    if device.type == "cuda" and launcher.world_size() > 1:
        device = torch.device("cuda", launcher.local_rank())
    if config.device not in ("auto", "cpu", "cuda"):
        fix = "Write auto, cpu or cuda, and choose among several GPUs with CUDA_VISIBLE_DEVICES."
        raise ConfigInvalid("The config", [f"device: {config.device} cannot be trained on. {fix}"])
    return device


def uses_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Whether products are in bf16: by `precision`; for auto, if the device has instructions for it."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not lacks_instructions(torch.bfloat16)


def base_notes(loaded: LoadedBase) -> Iterator[str]:
    """Notes for the user on what this base or device does differently than expected, in words."""
    if loaded.autocast and loaded.device.type == "cpu" and lacks_instructions(torch.bfloat16):
        yield "This CPU has no instructions for bfloat16: float32 would be faster. Leave precision at auto."
    fused = [weight for weight in loaded.model.parameters() if weight.dim() >= 3]
    if fused and loaded.quantization is not None:
        share = sum(map(torch.Tensor.numel, fused)) / loaded.num_parameters
        kept = f"The base's experts are fused into single weights: {share:.0%} of it stays in {loaded.dtype}"
        yield f"{kept.replace('torch.', '')}, not in {loaded.quantization}, and takes no adapter."


def disable_repacking(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking the 4-bit layers of `model` in a forward pass in eval mode.

    On CPUs with AVX512-BF16 that pass rewrites the weight in place for a kernel without gradients. Training that
    continues afterwards silently loses the gradients of all layers below.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
