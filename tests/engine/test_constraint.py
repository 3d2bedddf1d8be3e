"""Constraints in the sampler and in the step loop: what is forbidden never comes, and each token is told once."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConstraintFailed
from engine.sampler import sample
from engine.sequence import FinishReason, SamplingParams
from tests.support.constraints import Only, Script
from tests.support.engine_fakes import EOS, VOCAB, Bench, next_token
from tests.support.sequences import sequence

V = 40
WISHES = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=2),
    SamplingParams(top_k=3),
    SamplingParams(top_p=0.2),
    SamplingParams(min_p=0.5, temperature=1.5),
    SamplingParams(temperature=0, logit_bias={1: 100.0, 2: -100.0}),
    SamplingParams(repetition_penalty=5, presence_penalty=2, frequency_penalty=2),
]


def row(seed: int) -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 4


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    allowed=st.sets(st.integers(0, V - 1), min_size=1, max_size=V),
    ruled_out=st.sets(st.integers(0, V - 1), max_size=V - 1),
    params=st.sampled_from(WISHES),
)
def test_only_what_is_allowed_comes(seed: int, allowed: set[int], ruled_out: set[int], params: SamplingParams) -> None:
    """Even if the model itself rules out everything that is allowed."""
    logits = row(seed)
    logits[list(ruled_out)] = -math.inf
    of = sequence(generated=(1, 2, 1), params=params, stream=seed, constraint=Only(allowed))
    token = sample(logits[None], [of], ())[0].token
    assert token in allowed
    if not allowed <= ruled_out:
        assert token not in ruled_out


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    allowed=st.sets(st.integers(0, V - 1), min_size=1),
    params=st.sampled_from(WISHES),
    likeliest=st.booleans(),
)
def test_it_is_the_draw_from_logits_without_the_others(
    seed: int, allowed: set[int], params: SamplingParams, likeliest: bool
) -> None:
    """The plain loop: give the sampler logits in which the forbidden tokens have none."""
    logits = row(seed)
    allowed = allowed | {int(logits.argmax())} if likeliest else allowed
    plain = torch.tensor([value if token in allowed else -math.inf for token, value in enumerate(logits.tolist())])
    mine = sequence(params=params, stream=seed, constraint=Only(allowed))
    free = sequence(params=params, stream=seed)
    assert sample(logits[None], [mine], ())[0].token == sample(plain[None], [free], ())[0].token


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(top_p=0.5)], ids=str)
def test_what_penalties_rule_out_comes_where_nothing_else_may(params: SamplingParams) -> None:
    """A logit of -3e38 times a repetition penalty of 2 is -inf."""
    logits = torch.full((1, V), -3e38)
    of = sequence(prompt=(7,), params=replace(params, repetition_penalty=2.0), constraint=Only({7}))
    assert sample(logits, [of], ())[0].token == 7


@pytest.mark.parametrize("params", WISHES, ids=str)
def test_neighbours_are_as_without_it(params: SamplingParams) -> None:
    logits = torch.stack([row(seed) for seed in range(5)])
    free = [sequence(params=params, stream=number) for number in range(5)]
    alone = sample(logits.clone(), free, ())
    mixed = sample(logits, [*free[:2], sequence(params=params, constraint=Only({3})), *free[3:]], ())
    assert mixed[2].token == 3
    assert mixed[:2] == alone[:2] and mixed[3:] == alone[3:]
    assert torch.equal(logits, torch.stack([row(seed) for seed in range(5)])), "the caller's logits stay"


def test_logprobs_are_the_models_own() -> None:
    logits = row(1)
    of = sequence(params=SamplingParams(temperature=0, logprobs=V), constraint=Only({int(logits.argmin())}))
    report = sample(logits[None], [of], ())[0].logprob
    assert report is not None and report.token_id == int(logits.argmin())
    assert report.logprob == pytest.approx(float(logits.log_softmax(-1).min()))
    assert report.top[0][0] == int(logits.argmax()), "forbidden alternatives are told too"


def test_one_that_fails_fails_alone() -> None:
    logits = torch.stack([row(seed) for seed in range(3)])
    broken = logits.clone()
    broken[2, 4] = math.nan
    params = SamplingParams(temperature=0)
    constraints = [Only({5}), Only({5}, fails_at=0), Only({5}, fails_at=0)]
    results = sample(broken, [sequence(params=params, constraint=each) for each in constraints], ())
    assert [result.token for result in results] == [5, None, None]
    assert [(result.stuck, result.finite) for result in results] == [(False, True), (True, True), (False, False)]


def test_tokens_beyond_the_mask_are_forbidden() -> None:
    """A model may have more logits than its vocabulary has tokens."""
    logits = torch.zeros(8192)
    logits[8000] = 50
    of = sequence(params=SamplingParams(temperature=0), constraint=Only({7, 9}))
    assert sample(logits[None], [of], ())[0].token in {7, 9}


# In the step loop, whose fake runner counts upwards whatever is allowed


def counted(last: int, length: int) -> list[int]:
    tokens = [last]
    for _ in range(length):
        tokens.append(next_token(tokens[-1], None))
    return tokens[1:]


def test_it_ends_with_its_last_token() -> None:
    bench = Bench()
    bench.submit("a", (1, 2, 3), max_tokens=50, constraint=(constraint := Script(counted(3, 5))))
    bench.run()
    assert bench.tokens("a") == constraint.told == counted(3, 5)
    assert bench.reason("a") is FinishReason.STOP


def test_max_tokens_cut_it() -> None:
    bench = Bench()
    bench.submit("a", (1, 2, 3), max_tokens=4, constraint=Script(counted(3, 5)))
    bench.submit("b", (1, 2, 3), max_tokens=5, constraint=Script(counted(3, 5)))
    bench.run()
    assert bench.reason("a") is FinishReason.LENGTH
    assert bench.reason("b") is FinishReason.STOP, "whole is whole"


def test_the_end_token_ends_it_and_is_not_told() -> None:
    bench = Bench()
    bench.submit("a", (EOS - 3,), max_tokens=50, constraint=(constraint := Only(range(VOCAB))))
    bench.run()
    assert bench.reason("a") is FinishReason.STOP and constraint.told == [EOS - 2, EOS - 1]


def test_a_stop_string_ends_it_first() -> None:
    bench = Bench()
    params = SamplingParams(max_tokens=50, stop=("g",))
    bench.submit("a", (1, 2, 3), params=params, constraint=Only(range(VOCAB)))
    bench.run()
    assert bench.text("a") == "ef" and bench.reason("a") is FinishReason.STOP


class _Refuses(Only):
    """Fails when it is told, as a library may that finds out late."""

    def accept(self, token: int) -> None:
        raise ConstraintFailed("too deep")


def test_one_that_fails_when_told_ends_its_request_alone() -> None:
    bench = Bench()
    bench.submit("a", constraint=_Refuses(range(VOCAB)))
    bench.submit("b")
    bench.run()
    assert bench.outputs["a"][-1].error_code == "constraint_failed"
    assert bench.reason("b") is FinishReason.LENGTH


def test_a_preempted_sequence_tells_each_token_once() -> None:
    bench = Bench(blocks=12, block_size=4, batch_tokens=16)
    constraints = {name: Script(counted(3, 22)) for name in "abc"}
    for name, constraint in constraints.items():
        bench.submit(name, (1, 2, 3), max_tokens=30, constraint=constraint)
    bench.run()
    assert any(type(event).__name__ == "Preempted" for event in bench.events)
    for name, constraint in constraints.items():
        assert bench.tokens(name) == constraint.told == counted(3, 22)
        assert bench.reason(name) is FinishReason.STOP
