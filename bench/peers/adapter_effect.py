"""Checks that a target's adapters change its answers: one that ignores them gets no figures for adapters.

Owns the prompts and the verdict. Knows a target by its answers alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import ne

from bench.api import CompletionRequest
from bench.arrivals import Arrivals, ClosedLoop
from bench.errors import BenchError
from bench.load import LoadResult, random_prompt
from bench.measure import Target

PROMPTS, PROMPT_TOKENS, OUTPUT_TOKENS = 6, 32, 8
"""One prompt is not enough: where the base is confident, an adapter may change nothing."""
SEED = 4
Answers = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Effect:
    """The greedy answers of one target to the same prompts: its base's, those of two adapters, and its base's again.

    A target without adapters has its base's alone.
    """

    base: Answers
    adapters: Sequence[Answers] = ()
    again: Answers = ()

    @property
    def fault(self) -> str:
        """Why the target's figures would not be those of adapters; empty where they are.

        Answers must differ in more prompts than the base's own two answers do.
        """
        if not self.adapters:
            return ""
        first, last = self.adapters
        if self.again != self.base and self.again in self.adapters:
            return "the base answers as the adapter that was asked before it"
        noise = _differing(self.base, self.again)
        if min(_differing(self.base, first), _differing(self.base, last)) <= noise:
            return "an adapter answers as the base does"
        return "two adapters answer alike" if _differing(first, last) <= noise else ""

    def agreement_with(self, other: "Effect") -> str:
        """How many tokens agree with those of `other` before the first difference: base, then adapters."""
        pairs = zip((self.base, *self.adapters), (other.base, *other.adapters), strict=False)
        return ", ".join(f"{sum(map(_common_prefix, own, its))} of {sum(map(len, own))}" for own, its in pairs)


def measure_effect(target: Target, names: Sequence[str], vocab: int) -> Effect:
    """Ask `target` one prompt at a time, since batching may change answers.

    Raises BenchError where it sends no token ids.
    """
    two = names[:2] if target.adapters.issuperset(names[:2]) else []
    models = [target.base_id, *two, target.base_id] if two else [target.base_id]
    base, *others = (_answers(target, model, vocab) for model in models)
    return Effect(base, others[:-1], *others[-1:])


def _answers(target: Target, model: str, vocab: int) -> Answers:
    generator = random.Random(SEED)
    requests = [
        CompletionRequest(model, random_prompt(generator, vocab, PROMPT_TOKENS), OUTPUT_TOKENS) for _ in range(PROMPTS)
    ]
    answers = [timing.ids for timing in target.run(requests, ClosedLoop(1), seed=SEED).timings]
    if not any(answers):
        raise BenchError(f"{target.name} does not tell which tokens it made, so nobody knows whether adapters act.")
    return answers


def _differing(one: Answers, other: Answers) -> int:
    return sum(map(ne, one, other))


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass(frozen=True, slots=True)
class BaseOnly:
    """A target without its adapters, which have no effect."""

    target: Target
    adapters: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def base_id(self) -> str:
        return self.target.base_id

    @property
    def pid(self) -> int | None:
        return self.target.pid

    def run(self, requests: Sequence[CompletionRequest], arrivals: Arrivals, seed: int) -> LoadResult:
        return self.target.run(requests, arrivals, seed)
