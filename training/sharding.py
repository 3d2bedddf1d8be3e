"""A frozen base spread over the processes of a launch: each keeps a part of every decoder layer (FSDP2, ZeRO-3).

Owns which weights are spread. Adapters stay whole in every process, where plain data parallelism averages their
gradients: what is trained, kept, resumed and exported is the same with and without sharding.
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
from training import launched
from training.base import Loaded
from training.config import TrainConfig
from training.errors import ConfigInvalid


def check_shardable(config: TrainConfig) -> None:
    """Raises ConfigInvalid for runs in which the processes would wait for each other."""
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


def shard(model: nn.Module, loaded: Loaded) -> str:
    """Spread the decoder layers of `loaded.model`, which `model` wraps, over all processes; tells what each keeps.

    A layer's weights are gathered when it runs, forward and backward, and dropped after it. From here on a forward
    pass of `model` needs all processes, each at the same point. Embeddings, heads and what learns stay whole.
    """
    PartialState(cpu=loaded.device.type == "cpu")  # joins the processes
    mesh = init_device_mesh(loaded.device.type, (launched.processes(),))
    learning = {weight for weight in model.parameters() if weight.requires_grad}
    for layer in _layers(loaded.model):
        fully_shard(layer, mesh=mesh, ignored_params=learning & set(layer.parameters()))
    spread = {name: weight for name, weight in model.named_parameters() if isinstance(weight, DTensor)}
    decoder = loaded.model.base_model
    # Spreads nothing more, but lets a layer be gathered while the one before it runs.
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - set(spread.values()))
    if loaded.quantization is None:
        model.to(loaded.device)
    # What is averaged is what learns; the parts of a frozen weight differ by design.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(spread))
    _make_buffers(decoder)
    kept = format_bytes(sum(weight.to_local().nbytes for weight in spread.values()))
    whole = format_bytes(sum(weight.nbytes for weight in spread.values()))
    return f"FSDP: of the {whole} in the base's layers, each of {launched.processes()} processes keeps {kept}."


def _layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The modules that hold a residual block each, as the architecture names their classes."""
    names = set(model._no_split_modules or ())
    return (module for module in model.modules() if type(module).__name__ in names)


def _make_buffers(decoder: nn.Module) -> None:
    """Gather each layer once: a buffer that is made in inference mode could not take part in a backward pass."""
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()
