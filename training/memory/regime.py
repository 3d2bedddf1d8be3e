"""The precision of a fine-tune's weights and products, the one choice that changes its memory by factors.

Owns the translation from a config to bytes per number. Knows no model and no torch.
"""

from dataclasses import dataclass

from training.config import TrainConfig

BF16, FP32 = 2, 4


@dataclass(frozen=True, slots=True)
class Regime:
    """Bytes per number: of the dense base, and of the trained weights (`trained`; of the base itself if `full`).

    `autocast`: products are computed in bf16, whatever the precision of the weights.
    """

    full: bool
    base: int
    trained: int
    autocast: bool
    quantized: bool = False
    dora: bool = False
    dropout: bool = False
    cuda: bool = True

    @property
    def product(self) -> int:
        """Bytes per number in the inputs and results of matrix products."""
        return BF16 if self.autocast else self.base

    @property
    def text(self) -> str:
        """The regime in words."""
        products = "bf16" if self.product == BF16 else "fp32"
        if self.full:
            return f"every weight trained in {_precision(self.base)}, products in {products}"
        base = f"base in 4 bits, its dense rest in {_precision(self.base)}" if self.quantized else ""
        base = base or f"base frozen in {_precision(self.base)}"
        return f"{base}; adapters in {_precision(self.trained)}; products in {products}"


def _precision(size: int) -> str:
    return "bf16" if size == BF16 else "fp32"


def regime_of(config: TrainConfig, *, bf16: bool, cuda: bool) -> Regime:
    """The regime of `rootstock train` for `config`; `bf16`: the device has instructions to multiply it.

    Adapters are kept in fp32, since bf16 rounds small updates away; so are all weights of a full fine-tune.
    """
    wide = not bf16 if config.precision == "auto" else config.precision == "float32"
    full = config.method == "full"
    return Regime(
        full=full,
        base=FP32 if wide or full else BF16,
        trained=FP32,
        autocast=not wide,
        quantized=config.quantized is not None,
        dora=config.method in ("dora", "qdora"),
        dropout=config.adapter.dropout > 0 and not full,
        cuda=cuda,
    )
