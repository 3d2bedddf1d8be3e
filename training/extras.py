"""Checks that the libraries and the device that a config needs are there.

Owns those checks, which run before anything is read or loaded. Imports none of the libraries.
"""

from collections.abc import Iterator
from importlib.util import find_spec

from training.config import TrainConfig
from training.errors import ConfigInvalid, MissingExtra

TRAIN = ("datasets", "matplotlib", "peft", "trl")


def check_extras(config: TrainConfig) -> None:
    """Raises MissingExtra, which names the extra to install."""
    for extra, names, what in (("train", TRAIN, "training"), ("track", config.track, f"track: {list(config.track)}")):
        missing = [name for name in names if find_spec(name) is None]
        if missing:
            raise MissingExtra(f"{what} needs {', '.join(missing)}. In the clone: pip install -e '.[{extra}]'")


def check_device(config: TrainConfig, device: str) -> None:
    """Raises ConfigInvalid for settings that `device`, "cpu" or "cuda", does not support."""
    faults = list(_faults(config, device))
    if faults:
        raise ConfigInvalid("The config", faults)


def _faults(config: TrainConfig, device: str) -> Iterator[str]:
    if config.optimizer.name == "paged_adamw_8bit" and device == "cpu":
        yield (
            "optimizer.name: paged_adamw_8bit moves states between a GPU and the host, and this run is on the CPU. "
            "Use adamw_8bit or adamw."
        )
