"""Shards a frozen base over the processes of a launch: each keeps a part of every decoder layer (FSDP2, ZeRO-3).

Owns which weights are sharded. Adapters stay whole in every process, and plain data parallelism averages their
gradients: what is trained, checkpointed, resumed and exported is the same with and without sharding.
"""

from collections.abc import Iterator

from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from loader.memory import format_bytes
from training import launcher
from training.base import LoadedBase
from training.config import TrainConfig
from training.errors import ConfigInvalid


def check_shardable(config: TrainConfig) -> None:
    """Raises ConfigInvalid for runs that train the base itself, or whose processes would deadlock."""
    faults = []
    if config.method == "full":
        faults.append("method: full trains the base itself, and FSDP spreads a frozen one here. Choose lora or qlora.")
    if config.objective in ("grpo", "rloo"):
        faults.append(
            f"objective: {config.objective} writes answers of different length in each process, and FSDP needs all "
            "processes for each token. Launch with deploy/accelerate/several-gpus.yaml: the base whole on each GPU."
        )
    if faults:
        raise ConfigInvalid("The config", faults)


def shard(model: nn.Module, loaded: LoadedBase) -> str:
    """Shard the decoder layers of `loaded.model`, which `model` wraps, over all processes. Returns a note on sizes.

    A layer's weights are gathered when it runs, forward and backward, and freed after it. From here on every process
    must take part in each forward pass of `model`. Embeddings, heads and trainable weights stay whole.
    """
    PartialState(cpu=loaded.device.type == "cpu")  # joins the processes
    mesh = init_device_mesh(loaded.device.type, (launcher.world_size(),))
    learning = {weight for weight in model.parameters() if weight.requires_grad}
    for layer in _layers(loaded.model):
        fully_shard(layer, mesh=mesh, ignored_params=learning & set(layer.parameters()))
    sharded = {name: weight for name, weight in model.named_parameters() if isinstance(weight, DTensor)}
    decoder = loaded.model.base_model
    # Shards nothing more, but lets a layer be gathered while the one before it runs.
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - set(sharded.values()))
    if loaded.quantization is None:
        model.to(loaded.device)
    # Only trainable weights are averaged; the shards of a frozen weight differ by design.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(sharded))
    _gather_once(decoder)
    kept = format_bytes(sum(weight.to_local().nbytes for weight in sharded.values()))
    whole = format_bytes(sum(weight.nbytes for weight in sharded.values()))
    return f"FSDP: of the {whole} in the base's layers, each of {launcher.world_size()} processes keeps {kept}."


def _layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The decoder layers, by the class names that the architecture declares indivisible."""
    names = set(model._no_split_modules or ())
    return (module for module in model.modules() if type(module).__name__ in names)


def _gather_once(decoder: nn.Module) -> None:
    """Gather each layer once, now: buffers that are first allocated in inference mode cannot be used for gradients."""
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()
