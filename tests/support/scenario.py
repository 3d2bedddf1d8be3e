"""Requests that come at random steps with random adapters, the same for every engine that is to be compared."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.manifest import AdapterId
from engine.graphs import RecordedDecoding
from engine.runner import ModelRunner
from engine.sequence import Output, SamplingParams
from tests.support.adapters import ATTENTION, KINDS, MLP, write_adapter
from tests.support.engine_rig import Answer, EngineRig

TARGETS = (ATTENTION, ("q_proj", "v_proj"), MLP, (*ATTENTION, *MLP))
RANKS = (1, 2, 4, 5, 8, 16, 24)


@dataclass(frozen=True)
class Wish:
    """One request of a scenario: submitted before step `at`."""

    at: int
    prompt: tuple[int, ...]
    params: SamplingParams
    adapter: int | None


def wishes(seed: int, adapters: int, count: int = 24) -> list[Wish]:
    chance = random.Random(seed)
    return [
        Wish(
            at=chance.randrange(40),
            prompt=tuple(chance.randrange(256) for _ in range(chance.choice((1, 3, 9, 20)))),
            params=SamplingParams(
                temperature=0, max_tokens=chance.randrange(1, 20), ignore_eos=True, logprobs=0,
                prompt_logprobs=chance.choice((None, None, 0)),
            ),
            adapter=chance.choice((None, *range(adapters))),
        )
        for _ in range(count)
    ]  # fmt: skip


def add(rig: EngineRig, root: Path, count: int) -> list[AdapterId]:
    """Adapters of every kind, of many ranks, on many linears."""
    return [
        rig.add(
            write_adapter(
                root / str(number),
                rig.base.shape,
                kind=KINDS[number % len(KINDS)],
                rank=RANKS[number % len(RANKS)],
                ranks={"q_proj": 3} if number % 3 == 0 else None,
                targets=TARGETS[number % len(TARGETS)],
                seed=number,
                scale=0.2,
            )
        )
        for number in range(count)
    ]


def serve(rig: EngineRig, scenario: Sequence[Wish], ids: Sequence[AdapterId]) -> Mapping[int, Answer]:
    names: dict[str, int] = {}
    outputs: dict[str, list[Output]] = {}
    step = 0
    while rig.engine.scheduler.has_work or step <= max(wish.at for wish in scenario):
        for number, wish in enumerate(scenario):
            if wish.at == step:
                names[rig.submit(wish.prompt, wish.params, None if wish.adapter is None else ids[wish.adapter])] = (
                    number
                )
        for request, output in rig.step():
            outputs.setdefault(request, []).append(output)
        step += 1
    return {names[request]: Answer.of(every) for request, every in outputs.items()}


def decoding(rig: EngineRig) -> RecordedDecoding:
    runner = rig.engine._runner
    assert isinstance(runner, ModelRunner) and runner._recorded is not None
    return runner._recorded


def alike(one: Answer, other: Answer) -> bool:
    """The same tokens, about as likely."""
    return one.tokens == other.tokens and close(one, other, 1e-3)


def close(one: Answer, other: Answer, within: float) -> bool:
    """About as likely, up to the first token that differs, which must have been nearly a tie."""
    for own, others in zip(one.logprobs, other.logprobs, strict=True):
        if abs(own.logprob - others.logprob) > within:
            return False
        if own.token_id != others.token_id:
            return True
    return True
