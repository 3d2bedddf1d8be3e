"""The popularity generator: seeded, within range, and of the shape its name says."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workload import Mix, Popularity, assign, weights

popularities = st.sampled_from(Popularity)


@given(popularities, st.integers(0, 64), st.integers(1, 16), st.integers(0, 2**31))
def test_it_is_repeatable_and_names_only_adapters_that_exist(
    popularity: Popularity, requests: int, adapters: int, seed: int
) -> None:
    chosen = assign(popularity, requests, adapters, seed)
    assert len(chosen) == requests
    assert all(0 <= index < adapters for index in chosen)
    assert chosen == assign(popularity, requests, adapters, seed)


@given(popularities, st.integers(1, 64))
def test_frequencies_sum_to_one_and_never_rise(popularity: Popularity, adapters: int) -> None:
    frequencies = weights(popularity, adapters)
    assert math.isclose(sum(frequencies), 1.0)
    assert frequencies == sorted(frequencies, reverse=True)


def test_identical_asks_for_one_adapter() -> None:
    assert set(assign(Popularity.IDENTICAL, 50, 8)) == {0}


def test_distinct_asks_for_another_adapter_each_time() -> None:
    assert assign(Popularity.DISTINCT, 10, 4) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_uniform_spreads_evenly() -> None:
    counts = Counter(assign(Popularity.UNIFORM, 8000, 8, seed=1))
    assert all(800 < counts[index] < 1200 for index in range(8))


def test_zipf_follows_its_exponent() -> None:
    counts = Counter(assign(Popularity.ZIPF, 20_000, 8, seed=1))
    assert counts[0] / counts[1] == pytest.approx(2**1.5, rel=0.15)
    assert counts[1] / counts[3] == pytest.approx(2**1.5, rel=0.2)


def test_skewed_gives_half_to_one() -> None:
    counts = Counter(assign(Popularity.SKEWED, 8000, 8, seed=1))
    assert counts[0] / 8000 == pytest.approx(0.5, abs=0.03)
    assert max(counts[index] for index in range(1, 8)) < 800


def test_seeds_differ() -> None:
    assert assign(Popularity.UNIFORM, 64, 8, seed=1) != assign(Popularity.UNIFORM, 64, 8, seed=2)


def test_no_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one adapter"):
        assign(Popularity.UNIFORM, 8, 0)


@pytest.mark.parametrize("text", ["identical", "distinct", "uniform", "skewed", "zipf:1.5", "zipf:0.8"])
def test_a_mix_is_read_as_it_is_written(text: str) -> None:
    assert str(Mix.parse(text)) == text


def test_another_exponent_is_drawn_from() -> None:
    flat = weights(Popularity.ZIPF, 8, Mix.parse("zipf:0.1").exponent)
    assert flat[0] / flat[1] == pytest.approx(2**0.1)


@pytest.mark.parametrize("text", ["", "popular", "uniform:2", "zipf:steep"])
def test_other_mixes_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Mix.parse(text)
