"""Whether adapters act: whoever takes their names and answers as the base does has no figures for adapters.

Owns the question and the verdict. Knows a target by its answers alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import ne

from bench.api import Ask
from bench.arrivals import Arrivals, Closed
from bench.errors import BenchError
from bench.load import Run, random_prompt
from bench.measure import Target

PROMPTS, PROMPT_TOKENS, OUTPUT_TOKENS = 6, 32, 8
"""One prompt is not enough: where a base is sure of itself, an adapter may change nothing."""
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
        """Why its figures are not those of adapters; empty where they are. What differs must do so for more prompts
        than the base's answers do from themselves."""
        if not self.adapters:
            return ""
        first, last = self.adapters
        if self.again != self.base and self.again in self.adapters:
            return "the base answers as the adapter that was asked before it"
        noise = _unlike(self.base, self.again)
        if min(_unlike(self.base, first), _unlike(self.base, last)) <= noise:
            return "an adapter answers as the base does"
        return "two adapters answer alike" if _unlike(first, last) <= noise else ""

    def beside(self, other: "Effect") -> str:
        """How many tokens of each have come when they part from those of `other`: base, then adapters."""
        pairs = zip((self.base, *self.adapters), (other.base, *other.adapters), strict=False)
        return ", ".join(f"{sum(map(_common, own, its))} of {sum(map(len, own))}" for own, its in pairs)


def ask(target: Target, names: Sequence[str], vocab: int) -> Effect:
    """Ask `target` prompt by prompt, so that no batch changes an answer. Raises BenchError where it does not tell
    which tokens it made."""
    two = names[:2] if target.adapters.issuperset(names[:2]) else []
    models = [target.base_id, *two, target.base_id] if two else [target.base_id]
    base, *others = (_answers(target, model, vocab) for model in models)
    return Effect(base, others[:-1], *others[-1:])


def _answers(target: Target, model: str, vocab: int) -> Answers:
    generator = random.Random(SEED)
    asks = [Ask(model, random_prompt(generator, vocab, PROMPT_TOKENS), OUTPUT_TOKENS) for _ in range(PROMPTS)]
    answers = [trace.ids for trace in target.run(asks, Closed(1), seed=SEED).traces]
    if not any(answers):
        raise BenchError(f"{target.name} does not tell which tokens it made, so nobody knows whether adapters act.")
    return answers


def _unlike(one: Answers, other: Answers) -> int:
    return sum(map(ne, one, other))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass(frozen=True, slots=True)
class BaseOnly:
    """A target whose adapters do not act: it has none."""

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

    def run(self, requests: Sequence[Ask], arrivals: Arrivals, seed: int) -> Run:
        return self.target.run(requests, arrivals, seed)
