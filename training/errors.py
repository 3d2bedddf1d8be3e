"""The errors of a training run, in words for the person who started it.

Owns the errors of `training/`. Knows no HTTP and no torch.
"""

from collections.abc import Sequence
from pathlib import Path


class TrainingError(Exception):
    """A mistake that the user can fix; the text says how."""


class ConfigInvalid(TrainingError):
    """The config says something that cannot be done. `faults` are all of them, each with its fix."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join([f"{source} cannot be used:", *(f"  - {fault}" for fault in faults)]))


class DataInvalid(TrainingError):
    """Lines of a data file that cannot be trained on. `faults` are all of them; the text shows the first SHOWN."""

    SHOWN = 20

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        lines = [f"  - {fault}" for fault in faults[: self.SHOWN]]
        if len(faults) > self.SHOWN:
            lines.append(f"  ... and {len(faults) - self.SHOWN} more.")
        super().__init__("\n".join(["The data cannot be used:", *lines]))


class OutputInTheWay(TrainingError):
    """The output folder, or the rest of an interrupted run, is there already."""


class GateFailed(TrainingError):
    """The adapter behaves otherwise in the server than it did in the trainer."""


class MissingExtra(TrainingError):
    """A library that an option needs is not installed; the text names the extra."""


class RewardModelInvalid(TrainingError):
    """`reward.model` names a folder that grpo and rloo cannot be rewarded by."""

    def __init__(self, folder: Path, problem: str, fix: str) -> None:
        super().__init__(f"reward.model: {folder} cannot be used: {problem}. {fix}")
