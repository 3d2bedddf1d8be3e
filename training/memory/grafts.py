"""The linear layers that an adapter adapts, and its number of parameters in each.

Owns the counting. The names follow PEFT: a target is the end of a layer's path, and `all-linear` leaves the head out.
"""

from dataclasses import dataclass

from loader.anatomy import Anatomy
from loader.shape import LinearShape
from training.config import Adapter, TrainConfig
from training.errors import ConfigInvalid


@dataclass(frozen=True, slots=True)
class Graft:
    """An adapter in one linear layer: A is `[rank, in]`, B `[out, rank]`, and DoRA's magnitude `[out]`."""

    linear: LinearShape
    rank: int
    dora: bool = False

    @property
    def tensors(self) -> tuple[int, ...]:
        """Numbers in each of its tensors."""
        magnitude = (self.linear.out_features,) if self.dora else ()
        return self.rank * self.linear.in_features, self.rank * self.linear.out_features, *magnitude

    @property
    def parameters(self) -> int:
        return sum(self.tensors)


def grafts_of(config: TrainConfig, anatomy: Anatomy) -> tuple[Graft, ...]:
    """The adapter of `config`, layer by layer; empty for a full fine-tune. Raises ConfigInvalid with every fault.

    PiSSA trains, and saves, a plain LoRA of twice the rank.
    """
    if config.method == "full":
        return ()
    faults = [*_unknown_targets(config.adapter, anatomy), *_unknown_layers(config.adapter, anatomy)]
    if faults:
        raise ConfigInvalid("The adapter", faults)
    rank = config.adapter.rank * (2 if config.adapter.init == "pissa" else 1)
    dora = config.method in ("dora", "qdora")
    return tuple(Graft(linear, rank, dora) for linear in anatomy.linears if _chosen(linear, config.adapter))


def _chosen(linear: LinearShape, adapter: Adapter) -> bool:
    if adapter.layers is not None and linear.layer not in adapter.layers:
        return False
    return adapter.targets == "all-linear" or any(_named(linear, target) for target in adapter.targets)


def _named(linear: LinearShape, target: str) -> bool:
    return f".{linear.path}".endswith(f".{target}")


def _unknown_targets(adapter: Adapter, anatomy: Anatomy) -> list[str]:
    if adapter.targets == "all-linear":
        return []
    missing = [name for name in adapter.targets if not any(_named(linear, name) for linear in anatomy.linears)]
    have = ", ".join(dict.fromkeys(linear.name for linear in anatomy.linears))
    return [f"adapter.targets: the base has no {', '.join(missing)}. It has {have}."] if missing else []


def _unknown_layers(adapter: Adapter, anatomy: Anatomy) -> list[str]:
    beyond = [str(layer) for layer in adapter.layers or () if not 0 <= layer < anatomy.layers]
    if not beyond:
        return []
    return [f"adapter.layers: the base has layers 0 to {anatomy.layers - 1}, not {', '.join(beyond)}."]
