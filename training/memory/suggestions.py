"""Changes to a config that would save memory, each alone and all together until the run fits.

Owns the list of changes and their order, by what they save. Each is planned, not estimated by a rule of thumb.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from loader.anatomy import Anatomy
from training.config import TrainConfig
from training.memory.plan import TrainingMemoryPlan, predict

WORTH = 0.99
"""A change that leaves more than this share of the total is not worth naming."""
LOWEST_RANK, SHORTEST = 4, 128


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """The arguments of `predict` for one run."""

    config: TrainConfig
    tokens: int
    bf16: bool = True
    cuda: bool = True

    def plan(self, anatomy: Anatomy) -> TrainingMemoryPlan:
        return predict(self.config, anatomy, tokens=self.tokens, bf16=self.bf16, cuda=self.cuda)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change in words, as it is written in a config, and the plan of the run with it."""

    change: str
    run: PlannedRun
    plan: TrainingMemoryPlan


def suggestions(run: PlannedRun, anatomy: Anatomy) -> tuple[Suggestion, ...]:
    """Every single change that saves something, the greatest saving first."""
    bound = run.plan(anatomy).total_bytes * WORTH
    made = [Suggestion(change, other, other.plan(anatomy)) for change, other in _changes(run)]
    return tuple(sorted((each for each in made if each.plan.total_bytes < bound), key=lambda each: _total(each)))


def until_it_fits(run: PlannedRun, anatomy: Anatomy, limit: int) -> tuple[Suggestion, ...]:
    """Changes made one on top of the other, each time the greatest, until the total is within `limit` bytes.

    Empty if it fits as it is. When nothing is left to change the last total is still beyond the limit.
    """
    taken: list[Suggestion] = []
    while (taken[-1].plan if taken else run.plan(anatomy)).total_bytes > limit:
        offered = suggestions(taken[-1].run if taken else run, anatomy)
        if not offered:
            break
        enough = [each for each in offered if _total(each) <= limit]
        # Of several that suffice, the one that gives up least.
        taken.append(max(enough, key=_total) if enough else offered[0])
    return tuple(taken)


def _total(suggestion: Suggestion) -> int:
    return suggestion.plan.total_bytes


def _changes(run: PlannedRun) -> Iterator[tuple[str, PlannedRun]]:
    config = run.config
    yield from _methods(run)
    if not config.steps.checkpointing:
        yield "steps.checkpointing: true", _with(run, steps={"checkpointing": True})
    if config.steps.micro_batch > 1:
        yield "steps.micro_batch: 1 (the same steps, by accumulation)", _with(run, steps={"micro_batch": 1})
    if run.tokens >= 2 * SHORTEST:
        half = run.tokens // 2
        shorter = _with(run, data={"max_tokens": half})
        yield f"data.max_tokens: {half}", replace(shorter, tokens=half)
    if config.method != "full" and config.adapter.rank >= 2 * LOWEST_RANK:
        rank = config.adapter.rank // 2
        yield f"adapter.rank: {rank}", _with(run, adapter={"rank": rank})
    if config.adapter.dropout > 0 and config.method != "full":
        yield "adapter.dropout: 0", _with(run, adapter={"dropout": 0.0})
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        if config.optimizer.name == "adamw" or (config.optimizer.name, name) == ("adamw_8bit", "paged_adamw_8bit"):
            yield f"optimizer.name: {name}", _with(run, optimizer={"name": name})
    if config.precision == "float32" and run.cuda:
        yield "precision: bfloat16", replace(run, config=config.model_copy(update={"precision": "bfloat16"}))


def _methods(run: PlannedRun) -> Iterator[tuple[str, PlannedRun]]:
    others = {"full": ("lora", "qlora"), "lora": ("qlora",), "dora": ("lora", "qdora", "qlora"), "qdora": ("qlora",)}
    for method in others.get(run.config.method, ()):
        yield f"method: {method}", replace(run, config=run.config.model_copy(update={"method": method}))


def _with(run: PlannedRun, **sections: dict[str, Any]) -> PlannedRun:
    changed = {name: getattr(run.config, name).model_copy(update=values) for name, values in sections.items()}
    return replace(run, config=run.config.model_copy(update=changed))
