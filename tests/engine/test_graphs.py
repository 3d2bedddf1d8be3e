"""Decode steps replayed from a recording say what steps computed one by one say, whoever comes and goes."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.manifest import AdapterId
from engine.graphs import RecordedDecoding
from engine.runner import ModelRunner
from engine.sequence import SamplingParams
from tests.support.adapters import ATTENTION, KINDS, MLP, write_adapter
from tests.support.models import tiny_model_dir
from tests.support.recorder import Again
from tests.support.serving import Answer, House

TARGETS = (ATTENTION, ("q_proj", "v_proj"), MLP, (*ATTENTION, *MLP))
RANKS = (1, 2, 4, 5, 8, 16, 24)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir("llama", tmp_path_factory.mktemp("models"))


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


def add(house: House, root: Path, count: int) -> list[AdapterId]:
    """Adapters of every kind, of many ranks, on many linears."""
    return [
        house.add(
            write_adapter(
                root / str(number),
                house.base.shape,
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


def serve(house: House, scenario: Sequence[Wish], ids: Sequence[AdapterId]) -> Mapping[int, Answer]:
    names: dict[str, int] = {}
    outputs: dict[str, list[object]] = {}
    step = 0
    while house.engine.scheduler.has_work or step <= max(wish.at for wish in scenario):
        for number, wish in enumerate(scenario):
            if wish.at == step:
                names[house.submit(wish.prompt, wish.params, None if wish.adapter is None else ids[wish.adapter])] = (
                    number
                )
        for request, output in house.step():
            outputs.setdefault(request, []).append(output)
        step += 1
    return {names[request]: Answer.of(every) for request, every in outputs.items()}  # type: ignore[arg-type]


def decoding(house: House) -> RecordedDecoding:
    runner = house.engine._runner
    assert isinstance(runner, ModelRunner) and runner._recorded is not None
    return runner._recorded


def alike(one: Answer, other: Answer) -> bool:
    """The same tokens, about as likely."""
    pairs = zip(one.logprobs, other.logprobs, strict=True)
    return one.tokens == other.tokens and all(abs(a.logprob - b.logprob) < 1e-3 for a, b in pairs)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("device_bytes", [64 << 20, 2_600_000])
def test_any_mix_is_replayed_and_says_what_eager_steps_say(
    model_dir: Path, tmp_path: Path, seed: int, device_bytes: int
) -> None:
    """Twelve adapters; in the small budget they push each other out, of the bank and off the stage."""
    recorder = Again()
    eager = House.of(model_dir, tmp_path / "eager", device_bytes=device_bytes)
    replayed = House.of(model_dir, tmp_path / "replayed", device_bytes=device_bytes, recorder=recorder)
    scenario = wishes(seed, 12)
    want = serve(eager, scenario, add(eager, tmp_path / "a", 12))
    got = serve(replayed, scenario, add(replayed, tmp_path / "b", 12))
    assert want.keys() == got.keys()
    assert [number for number in want if not alike(want[number], got[number])] == []
    assert decoding(replayed).works and recorder.replayed >= 20
    assert recorder.recorded == len(decoding(replayed)._recordings) < 25, "a mix is data, not a recording"
    eager.close()
    replayed.close()
