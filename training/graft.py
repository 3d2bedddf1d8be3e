"""Makes a loaded base trainable: adds an adapter to its linear layers, or unfreezes all of its weights.

Owns the choice of layers and the adapter's initial weights. Knows nothing of data or trainers.
"""

from collections.abc import Iterator
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.config import TrainConfig
from training.errors import ConfigInvalid
from training.quiet import libraries_quiet

ADAPTER = "default"
"""PEFT's name for an adapter that is given none."""
OVERSAMPLING, POWER_ITERATIONS = 8, 16
"""Extra directions and iterations of the randomized SVD."""


def graft(model: PreTrainedModel, config: TrainConfig) -> PeftModel | PreTrainedModel:
    """Make `model` trainable by `config.method`, with adapters in float32. Raises ConfigInvalid for unknown layers.

    PiSSA (arXiv 2404.02948) starts from the base's principal directions A0, B0 and takes them out of the base. Here
    the base stays as it is: the adapter has rank 2 r, and its second half is A0 and -B0, which never learns. The
    model computes the same, a disabled adapter gives the base itself, and what is saved is a plain LoRA of 2 r.
    """
    torch.manual_seed(config.steps.seed)
    if config.method == "full":
        model.requires_grad_(True)
        return model
    pissa = config.adapter.init == "pissa"
    with libraries_quiet():
        grafted = get_peft_model(model, _lora_config(model, config))
    assert isinstance(grafted, PeftModel)
    for parameter in grafted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for path, layer in _lora_layers(grafted):
        if pissa:
            _start_at_principal(path, layer, config.adapter.rank)
        if config.method in ("dora", "qdora"):
            # PEFT rounds the magnitude to the base's precision, which would change the base's outputs from the start.
            norm = _dense(layer).float().norm(dim=1)
            layer.lora_magnitude_vector[ADAPTER].weight.data = norm
    return grafted


def _lora_config(model: PreTrainedModel, config: TrainConfig) -> LoraConfig:
    adapter = config.adapter
    rank, alpha = adapter.rank, adapter.alpha
    if adapter.init == "pissa":
        # The scaling stays what it was: alpha / r, or alpha / sqrt(r) for rsLoRA.
        rank, alpha = 2 * rank, alpha * (2**0.5 if adapter.rslora else 2)
    # PEFT's annotation says int, but its arithmetic takes any number.
    lora_alpha = int(alpha) if float(alpha).is_integer() else alpha
    return LoraConfig(
        task_type="SEQ_CLS" if config.objective == "reward" else "CAUSAL_LM",
        r=rank,
        lora_alpha=lora_alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules=_targets(model, config),
        layers_to_transform=None if adapter.layers is None else sorted(set(adapter.layers)),
        use_rslora=adapter.rslora,
        use_dora=config.method in ("dora", "qdora"),
        modules_to_save=["score"] if config.objective == "reward" else None,
    )


def _targets(model: PreTrainedModel, config: TrainConfig) -> list[str]:
    """The target modules: last components of the linear layers' paths. "all-linear" leaves out the head.

    Raises ConfigInvalid.
    """
    decoder = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and "." in path]
    names = sorted({path.rsplit(".", 1)[-1] for path in decoder})
    faults = []
    targets = config.adapter.targets
    if targets != "all-linear":
        missing = [name for name in targets if not any(f".{path}".endswith(f".{name}") for path in decoder)]
        if missing:
            faults.append(f"adapter.targets: the base has no {', '.join(missing)}. It has {', '.join(names)}.")
    count = int(model.config.get_text_config().num_hidden_layers)
    beyond = [str(layer) for layer in config.adapter.layers or () if not 0 <= layer < count]
    if beyond:
        faults.append(f"adapter.layers: the base has layers 0 to {count - 1}, not {', '.join(beyond)}.")
    if faults:
        raise ConfigInvalid("The config", faults)
    return names if targets == "all-linear" else sorted(targets)


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


def _start_at_principal(path: str, layer: LoraLayer, rank: int) -> None:
    """Set A = [A0; A0] and B = [B0, -B0], where `scaling B0 A0` is the best fit of rank `rank` to the weight.

    The second halves are frozen. Raises ConfigInvalid for a rank that the weight does not have.
    """
    weight = _dense(layer)
    if rank > min(weight.shape):
        fault = f"adapter.rank: {path} of shape {list(weight.shape)} has no {rank} principal directions. Lower it."
        raise ConfigInvalid("The config", [fault])
    left, values, right = _principal(weight.float(), rank)
    roots = (values[:rank] / layer.scaling[ADAPTER]).sqrt()
    first_a, first_b = roots[:, None] * right[:rank], left[:, :rank] * roots
    a, b = (cast(nn.Linear, matrices[ADAPTER]).weight for matrices in (layer.lora_A, layer.lora_B))
    a.data, b.data = torch.cat([first_a, first_a]), torch.cat([first_b, -first_b], dim=1)
    # Adam never changes a weight whose gradient is always zero.
    a.register_hook(lambda grad: _without(grad, 0, rank))
    b.register_hook(lambda grad: _without(grad, 1, rank))


def _principal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T of the first `rank` principal directions or more.

    A full decomposition of one 7B-sized weight takes a minute on a CPU; power iterations (Halko et al., arXiv
    0909.4061) find the few that are needed in a second.
    """
    directions = rank + OVERSAMPLING
    if min(weight.shape) <= 4 * directions:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        return left, values, right
    left, values, right = torch.svd_lowrank(weight, q=directions, niter=POWER_ITERATIONS)
    return left, values, right.T


def _without(grad: Tensor, dim: int, start: int) -> Tensor:
    """`grad` with zeros at indices `[start, 2 * start)` of dimension `dim`."""
    kept = grad.clone()
    kept.narrow(dim, start, start).zero_()
    return kept


def _dense(layer: LoraLayer) -> Tensor:
    """The base's weight `[out, in]` under an adapter, dequantized if need be."""
    weight = cast(Tensor, layer.get_base_layer().weight)
    if hasattr(weight, "quant_state"):
        from loader.quantize import dense

        return dense(weight)
    return weight.detach()
