"""The activation memory of a layer of fused experts.

Owns that sum, for transformers' grouped products: tokens are sorted by expert, multiplied and put back. Autocast does
not reach these products; they run in the weights' own precision.
"""

from loader.anatomy import Experts
from training.memory.regime import FP32, Regime

INT32, INT64 = 4, 8


def expert_bytes(experts: Experts, hidden: int, regime: Regime) -> tuple[int, int]:
    """Bytes that autograd saves for each token, and once for each micro-batch. A token becomes `active` rows."""
    e, active = regime.base, experts.active
    weights = FP32 if experts.float_weights else regime.product
    routing = FP32 * experts.count + INT64 * active + (FP32 * (active + 1) if experts.renormed else 0)
    sorting = active * (3 * INT64 + weights)
    rows = active * e * (2 * experts.width + experts.width + hidden)
    learning = active * e * (experts.width + hidden) if regime.full else 0
    return routing + sorting + rows + learning, INT32 * experts.count
