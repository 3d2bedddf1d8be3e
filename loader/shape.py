"""What the rest of the project may know of a base without touching its weights.

Owns the frozen description of the base's linear layers. Imports no torch, so that
the strict adapter reader and the policies can be tested in milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearShape:
    """One linear layer `y = W x + b` of the base, with `W` of shape `[out_features, in_features]`."""

    path: str
    in_features: int
    out_features: int
    bias: bool = False

    @property
    def layer(self) -> int | None:
        """The index of the decoder layer this linear belongs to; None for the head."""
        return next((int(part) for part in self.path.split(".") if part.isdigit()), None)

    @property
    def name(self) -> str:
        """The last path component, the word that PEFT's `target_modules` uses: `q_proj`."""
        return self.path.rsplit(".", 1)[-1]


@dataclass(frozen=True, slots=True)
class BaseShape:
    """The graftable linears of a base, by module path, and the number of its layers.

    `refused` maps the paths (or globs) of weights that look like linears but cannot carry an
    adapter, such as fused experts, to the reason that is shown to the uploader.
    """

    base_id: str
    num_layers: int
    linears: Mapping[str, LinearShape]
    refused: Mapping[str, str]
