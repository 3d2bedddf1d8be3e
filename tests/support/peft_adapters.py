"""Adapters made by PEFT itself, with weights large enough to change what a tiny model says, and PEFT's own answers."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

KINDS: Mapping[str, Mapping[str, object]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 16, "lora_alpha": 8, "use_rslora": True},
    "dora": {"r": 3, "lora_alpha": 6, "use_dora": True},
    "patterned": {"r": 8, "lora_alpha": 16, "layers_to_transform": [0, 2]},
}
"""Different ranks, kinds and layers, so that no two adapters have the same shape anywhere."""


def write_adapter(model_dir: Path, out: Path, config: Mapping[str, object], seed: int) -> Path:
    """Save a random adapter exactly as `save_pretrained` does after training."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **_complete(config, base)))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        elif "lora_magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
    model.save_pretrained(str(out))
    return out


def _complete(config: Mapping[str, object], base: PreTrainedModel) -> dict[str, object]:
    """Every linear of the layers; of a mixture of experts, whose experts are no linears, the attention's.

    With `layers_to_transform`, one of them also gets a rank and an alpha of its own.
    """
    linears = {path.rsplit(".", 1)[-1] for path, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    attention = {name for name in linears if name.endswith("_proj") and name[0] in "qkvo"}
    targets = attention if "moe" in base.config.model_type or "mixtral" in base.config.model_type else linears
    targets -= {"lm_head"}
    patterns = {"rank_pattern": {min(targets): 5}, "alpha_pattern": {min(targets): 10}}
    return {**config, "target_modules": sorted(targets), **(patterns if "layers_to_transform" in config else {})}


class PeftReference:
    """What PEFT says for one adapter alone, unpadded, without a cache. One model holds all adapters, one is active."""

    def __init__(self, model: PreTrainedModel, adapters: Mapping[str, Path]) -> None:
        names = list(adapters)
        self._model = PeftModel.from_pretrained(model, adapters[names[0]], adapter_name=names[0]).eval()
        for name in names[1:]:
            self._model.load_adapter(adapters[name], name)

    @torch.inference_mode()
    def logprobs(self, adapter: str | None, tokens: Sequence[int]) -> Tensor:
        """`[len(tokens), V]` log-probabilities of what follows each token, float32; None is the plain base."""
        if adapter is not None:
            self._model.set_adapter(adapter)
        with self._model.disable_adapter() if adapter is None else nullcontext():
            logits: Tensor = self._model(torch.tensor([list(tokens)])).logits[0]
        return logits.float().log_softmax(-1)

    def greedy(self, adapter: str | None, prompt: Sequence[int], count: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logprobs(adapter, tokens)[-1].argmax()))
        return tokens[len(prompt) :]
