"""Each row's token follows its own logits and wishes: against plain formulas over plain lists."""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.draws import BLOCK, uniform
from engine.result import ChunkResult
from engine.sampler import report_prompt, sample
from engine.sequence import SamplingParams, Sequence
from tests.support.sequences import sequence

V = 12
LOGITS = torch.linspace(-2, 3, V)[torch.randperm(V, generator=torch.Generator().manual_seed(1))]


def one(row: torch.Tensor, of: Sequence, eos: Collection[int] = ()) -> ChunkResult:
    return sample(row[None].clone(), [of], eos)[0]


def draws(params: SamplingParams, count: int = 2000, row: torch.Tensor = LOGITS) -> Counter[int]:
    """How often each token comes, over the first `count` draws of one request's stream."""
    return Counter(one(row, sequence(params=params, stream=draw)).token or 0 for draw in range(count))


def plain(row: torch.Tensor, p: SamplingParams) -> dict[int, float]:
    """The distribution by the book: temperature, then top-k, top-p, min-p over sorted lists."""
    best = float(row.max())
    weights = {token: math.exp((logit - best) / p.temperature) for token, logit in enumerate(row.tolist())}
    ranked = sorted(weights, key=lambda token: -weights[token])[: p.top_k or None]
    total = sum(weights[token] for token in ranked)
    kept, before = [], 0.0
    for token in ranked:
        if before >= p.top_p or weights[token] < p.min_p * weights[ranked[0]]:
            break
        kept.append(token)
        before += weights[token] / total
    mass = sum(weights[token] for token in kept)
    return {token: weights[token] / mass for token in kept}


def inverted(distribution: dict[int, float], order: list[int], at: float) -> int:
    """The token at which the cumulative distribution passes `at`."""
    cumulative = 0.0
    for token in order:
        cumulative += distribution.get(token, 0.0)
        if at < cumulative:
            return token
    return order[-1]


def near(distribution: dict[int, float], stream: int) -> set[int]:
    """The tokens that a stream's first number stands for, or one that is off by what floats round away."""
    places = (uniform(stream, 0) + shift for shift in (-1e-5, 0.0, 1e-5))
    return {inverted(distribution, sorted(distribution), min(max(at, 0.0), 1 - 1e-12)) for at in places}


FILTERS = [
    SamplingParams(),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=2.0, top_k=4),
    SamplingParams(top_p=0.6),
    SamplingParams(min_p=0.2),
    SamplingParams(temperature=1.5, top_k=7, top_p=0.8, min_p=0.15),
    SamplingParams(top_p=1e-9),
    SamplingParams(top_k=1),
    SamplingParams(top_k=100, top_p=0.9999),
]


@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_draws_follow_the_plain_distribution(params: SamplingParams) -> None:
    expected = plain(LOGITS, params)
    for stream in range(300):
        assert one(LOGITS, sequence(params=params, stream=stream)).token in near(expected, stream)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, 2 * BLOCK, 3 * BLOCK + 7])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_draws_of_a_batch_do_too_over_any_number_of_blocks(size: int, spread: float) -> None:
    """Every token's logit is its own, if only by a little."""
    generator = torch.Generator().manual_seed(size)
    for draw in range(20):
        ranks = torch.stack([torch.randperm(size, generator=generator) for _ in FILTERS])
        rows = ranks * 1e-4 + spread * torch.randn(len(FILTERS), size, generator=generator)
        results = sample(rows, [sequence(params=p, stream=draw) for p in FILTERS], ())
        for row, params, result in zip(rows, FILTERS, results, strict=True):
            assert result.token in near(plain(row, params), draw)


def test_of_tokens_that_weigh_the_same_the_first_stay() -> None:
    row = torch.tensor([0.0, 2.0, 1.0, 1.0, 1.0, 0.0])
    assert draws(SamplingParams(top_k=2), 200, row).keys() == {1, 2}
    assert draws(SamplingParams(top_p=0.6), 200, row).keys() == {1, 2, 3}
    assert draws(SamplingParams(top_k=3, min_p=math.exp(-1)), 200, row).keys() == {1, 2, 3}
    assert draws(SamplingParams(min_p=math.exp(-1)), 200, row).keys() == {1, 2, 3, 4}


@pytest.mark.parametrize("params", [SamplingParams(top_k=1), SamplingParams(top_p=1e-9), SamplingParams(min_p=1.0)])
def test_what_leaves_the_best_token_alone_is_greedy(params: SamplingParams) -> None:
    row = LOGITS.clone()
    row[5] = row.max() if params.min_p == 0 else row.min()
    assert draws(params, 50, row).keys() == {int(row.argmax())}


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(temperature=0)])
def test_a_row_that_its_wishes_leave_without_a_finite_logit_fails_alone(params: SamplingParams) -> None:
    """A logit of 1e37 over a repetition penalty of 0.01 is more than a float holds."""
    broken = LOGITS.clone()
    broken[[1, 2]] = 1e37
    wild = replace(params, repetition_penalty=0.01)
    of = [sequence(params=params, stream=5), sequence(prompt=(1, 2), params=wild), sequence(params=params, stream=5)]
    results = sample(torch.stack([LOGITS, broken, LOGITS]), of, ())
    assert [result.finite for result in results] == [True, False, True]
    assert results[0].token == results[2].token == one(LOGITS, of[0]).token


def test_draws_are_uniform() -> None:
    values = [uniform(stream, draw) for stream in range(40) for draw in range(50)]
    assert all(0 <= value < 1 for value in values) and len(set(values)) == len(values)
    for edge in (0.1, 0.5, 0.9):
        assert abs(sum(value < edge for value in values) / len(values) - edge) < 0.05


def test_temperature_0_is_the_best_token() -> None:
    assert one(LOGITS, sequence(params=SamplingParams(temperature=0))).token == int(LOGITS.argmax())


@pytest.mark.parametrize("temperature", [1e-3, 1e-12, 1e-45, 5e-324])
def test_next_to_0_is_the_best_token_too(temperature: float) -> None:
    assert draws(SamplingParams(temperature=temperature), 20, LOGITS * 100).keys() == {int(LOGITS.argmax())}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), place=st.integers(0, 4), others=st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_a_stream_depends_on_nothing_else_in_the_batch(seed: int, place: int, others: list[int]) -> None:
    mine = sequence("mine", generated=(5, 6), params=SamplingParams(top_p=0.9), stream=seed)
    alone = one(LOGITS, mine).token
    rows = [torch.randn(V, generator=torch.Generator().manual_seed(other)) for other in others]
    strangers = [
        sequence(params=SamplingParams(temperature=other / 3, top_k=other, logit_bias={1: 3.0}), stream=other)
        for other in others
    ]
    rows.insert(place, LOGITS)
    strangers.insert(place, mine)
    assert sample(torch.stack(rows), strangers, ())[place].token == alone


def test_a_seed_gives_the_same_tokens_and_each_draw_another() -> None:
    flat = torch.zeros(V)
    first = [one(flat, sequence(generated=[0] * n, stream=7)).token for n in range(30)]
    assert first == [one(flat, sequence(generated=[0] * n, stream=7)).token for n in range(30)]
    assert len(set(first)) > 5
    assert first != [one(flat, sequence(generated=[0] * n, stream=8)).token for n in range(30)]


def adjusted(row: torch.Tensor, of: Sequence, eos: Collection[int] = ()) -> list[float]:
    """The logits that a request's wishes leave of `row`, by the formulas."""
    p, values = of.params, []
    for token, logit in enumerate(row.tolist()):
        if p.repetition_penalty != 1 and token in of.tokens:
            logit = logit / p.repetition_penalty if logit > 0 else logit * p.repetition_penalty
        count = of.tokens[of.prompt_len :].count(token)
        logit -= p.frequency_penalty * count + (p.presence_penalty if count else 0)
        logit += p.logit_bias.get(token, 0.0)
        values.append(logit)
    if of.num_generated < p.min_tokens:
        for token in (*eos, *p.stop_token_ids):
            values[token] = -math.inf
    return values


PENALTIES = [
    SamplingParams(temperature=0, presence_penalty=1.5),
    SamplingParams(temperature=0, frequency_penalty=0.9),
    SamplingParams(temperature=0, frequency_penalty=-2, presence_penalty=-1),
    SamplingParams(temperature=0, repetition_penalty=3.0),
    SamplingParams(temperature=0, repetition_penalty=0.2),
    SamplingParams(temperature=0, logit_bias={4: 100.0, 5: -100.0}),
    SamplingParams(temperature=0, logit_bias={3: 2.0}, repetition_penalty=1.3, presence_penalty=0.5, min_tokens=9),
    SamplingParams(temperature=0, min_tokens=9, stop_token_ids=(int(LOGITS.topk(2).indices[1]),)),
]


@pytest.mark.parametrize("shift", [0, -10], ids=["around 0", "below 0"])
@pytest.mark.parametrize("params", PENALTIES, ids=str)
def test_penalties_and_bias_by_the_formula(params: SamplingParams, shift: float) -> None:
    """The best token is the end, and the next best one may be a stop token."""
    best = LOGITS.argsort(descending=True).tolist()
    of = sequence(prompt=[best[2], best[7]], generated=[best[0], best[1], best[0], best[8]], params=params)
    for token in range(V):  # with a push of its own, every token wins exactly when the formula says so
        row = LOGITS + shift
        row[token] += 3
        expected = adjusted(row, of, eos=[best[0]])
        assert one(row, of, eos=[best[0]]).token == max(range(V), key=lambda other: expected[other])


def test_min_tokens_ends_when_they_are_there() -> None:
    eos = int(LOGITS.argmax())
    params = SamplingParams(temperature=0, min_tokens=2)
    chosen = [one(LOGITS, sequence(generated=[0] * n, params=params), [eos]).token for n in range(4)]
    assert [token == eos for token in chosen] == [False, False, True, True]


def test_wishes_of_one_row_do_not_touch_its_neighbour() -> None:
    logits = torch.stack([LOGITS, LOGITS])
    wishes = [SamplingParams(temperature=0, logit_bias={3: 50.0}), SamplingParams(temperature=0)]
    results = sample(logits, [sequence(params=p) for p in wishes], ())
    assert [result.token for result in results] == [3, int(LOGITS.argmax())]
    assert torch.equal(logits, torch.stack([LOGITS, LOGITS])), "the caller's logits stay"


def test_logprobs_are_the_models_own_before_any_wish() -> None:
    params = SamplingParams(temperature=0, logit_bias={3: 50.0}, logprobs=4)
    report = one(LOGITS, sequence(params=params)).logprob
    plain_logprobs = LOGITS.log_softmax(-1)
    assert report is not None and report.token_id == 3
    assert report.logprob == pytest.approx(float(plain_logprobs[3]), abs=1e-6)
    best = plain_logprobs.argsort(descending=True)[:4].tolist()
    assert [token for token, _ in report.top] == best
    assert [value for _, value in report.top] == pytest.approx(plain_logprobs[best].tolist(), abs=1e-6)


@pytest.mark.parametrize(("asked", "given_"), [(0, 0), (3, 3), (V + 5, V)])
def test_as_many_alternatives_as_asked(asked: int, given_: int) -> None:
    report = one(LOGITS, sequence(params=SamplingParams(logprobs=asked))).logprob
    assert report is not None and len(report.top) == given_
    assert one(LOGITS, sequence()).logprob is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompt_reports_are_log_softmax_in_float32(dtype: torch.dtype) -> None:
    rows = torch.randn(3, V, generator=torch.Generator().manual_seed(0)).to(dtype)
    reports = report_prompt(rows, [4, 0, 11], 2)
    expected = rows.float().log_softmax(-1)
    assert [r.logprob for r in reports] == pytest.approx([float(expected[i, t]) for i, t in enumerate((4, 0, 11))])
    assert [r.top[0][0] for r in reports] == rows.argmax(-1).tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(bad: float, temperature: float) -> None:
    broken = LOGITS.clone()
    broken[2] = bad
    p = SamplingParams(temperature=temperature, logprobs=2, top_p=0.9)
    rows = torch.stack([LOGITS, broken, LOGITS])
    results = sample(rows, [sequence(params=p, stream=n) for n in (1, 2, 3)], ())
    assert [result.finite for result in results] == [True, False, True]
    assert results[1].token is None and results[1].logprob is None
    assert results[0].token == one(LOGITS, sequence(params=p, stream=1)).token


def test_tokens_the_model_rules_out_are_never_drawn() -> None:
    row = torch.full((V,), -math.inf)
    row[[3, 8]] = 0.0
    assert draws(SamplingParams(), 50, row).keys() == {3, 8}
