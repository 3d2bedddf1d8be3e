"""What an adapter is, once it has been read: its identity, its kind and its grafts.

Owns the frozen data that registry, residency, bank and HTTP replies share. Knows no
files, no torch and no base weights.
"""

from dataclasses import dataclass
from typing import Literal, NewType

from loader.dtypes import ITEM_BYTES, Dtype

AdapterId = NewType("AdapterId", str)
"""`sha256:<64 hex digits>` of the canonical config and weights: an adapter's identity is its content."""

Kind = Literal["lora", "rslora", "dora", "rsdora"]


@dataclass(frozen=True, slots=True)
class Graft:
    """One adapted linear: `y = g * (W x + scaling * B (A x)) + bias`, `A [rank, in]`, `B [out, rank]`.

    `scaling` is `alpha / rank` (LoRA, arXiv 2106.09685) or `alpha / sqrt(rank)` (rsLoRA, arXiv 2312.03732).
    `g` is 1, or with `dora` the learned magnitude over the norm of the adapted rows (arXiv 2402.09353).
    """

    path: str
    in_features: int
    out_features: int
    rank: int
    scaling: float
    dora: bool = False

    @property
    def elements(self) -> int:
        return self.rank * (self.in_features + self.out_features) + (self.out_features if self.dora else 0)


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The base in training: `weights` is its fingerprint (loader/fingerprint.py), `quantization` none, nf4 or fp4."""

    weights: str
    quantization: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """An adapter's description. `rank` is the largest rank among its grafts; `targets` their last names, sorted.

    `base` and `trained_on` are what the upload says of its base; they belong to a version, not to the content.
    """

    id: AdapterId
    kind: Kind
    rank: int
    targets: tuple[str, ...]
    grafts: tuple[Graft, ...]
    dtype: Dtype
    base: str | None
    trained_on: TrainedOn | None = None

    @property
    def elements(self) -> int:
        return sum(graft.elements for graft in self.grafts)

    @property
    def stored_bytes(self) -> int:
        """The bytes of the tensors, as they are stored."""
        return self.elements * ITEM_BYTES[self.dtype]
