"""The learning rates that are used when a config names none, and where they come from.

Owns that one table. Adapters want about ten times a full fine-tune's rate (fitted at 9.8 by Thinking Machines,
"LoRA Without Regret"); the QLoRA paper (arXiv 2305.14314) halves it for its largest models.
"""

from training.config import Method, Objective

LARGE = 30_000_000_000
"""Parameters from which supervised fine-tuning takes half the rate."""
FULL = 0.1
_ADAPTER: dict[Objective, float] = {"sft": 2e-4, "reward": 1e-4, "dpo": 5e-6, "grpo": 1e-5, "rloo": 1e-5}


def learning_rate(method: Method, objective: Objective, parameters: int) -> float:
    """The rate for a base of so many parameters."""
    rate = _ADAPTER[objective]
    if objective == "sft" and parameters >= LARGE:
        rate /= 2
    return rate * FULL if method == "full" else rate
