"""The default learning rates, used when a config names none, and where they come from.

Owns that one table. Adapters want about ten times a full fine-tune's rate (fitted at 9.8 by Thinking Machines,
"LoRA Without Regret"); the QLoRA paper (arXiv 2305.14314) halves it for its largest models.
"""

from training.config import Method, Objective

LARGE = 30_000_000_000
"""The number of parameters from which supervised fine-tuning takes half the rate."""
FULL = 0.1
"""A full fine-tune's rate over an adapter's."""
_ADAPTER_RATES: dict[Objective, float] = {"sft": 2e-4, "reward": 1e-4, "dpo": 5e-6, "grpo": 1e-5, "rloo": 1e-5}


def default_learning_rate(method: Method, objective: Objective, parameters: int) -> float:
    """The default for a base with this number of parameters."""
    rate = _ADAPTER_RATES[objective]
    if objective == "sft" and parameters >= LARGE:
        rate /= 2
    return rate * FULL if method == "full" else rate
