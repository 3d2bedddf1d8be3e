"""Seats on a stage: nobody's rows overlap, whoever stays keeps theirs, and the width is the least that will do."""

import random

import pytest

from adapters.manifest import AdapterId
from adapters.seating import Seating, bucket


def ids(*names: str) -> list[AdapterId]:
    return [AdapterId(name) for name in names]


A, B, C = ids("a", "b", "c")


@pytest.mark.parametrize("count, size", [(1, 1), (2, 2), (3, 4), (5, 8), (33, 40), (40, 40)])
def test_buckets_are_powers_of_two_and_the_largest(count: int, size: int) -> None:
    assert bucket(count, 40) == size
    assert bucket(count, 40, least=16) == max(size, 16)


def test_a_newcomer_sits_beside_those_who_are_there() -> None:
    seating = Seating(64)
    first = seating.seat({A: 8})
    assert first is not None and (first.rows[A], first.newcomers, first.width) == (range(8), (A,), 16)
    second = seating.seat({A: 8, B: 4})
    assert second is not None and (second.newcomers, second.rows[B], second.width) == ((B,), range(8, 12), 16)
    back = seating.seat({A: 8})
    assert back is not None and back.newcomers == () and back.rows == {A: range(8)}, "B's rows wait for it"


def test_all_move_up_when_the_step_would_be_wider_than_it_need_be() -> None:
    seating = Seating(64)
    seating.seat({A: 16, B: 16})
    alone = seating.seat({B: 16})
    assert alone is not None and (alone.rows, alone.newcomers, alone.width) == ({B: range(16)}, (B,), 16)
    seating.seat({C: 16, B: 16})
    wide = seating.seat({A: 32, C: 16})
    assert wide is not None and wide.width == 64 and set(wide.newcomers) == {A}


def test_who_does_not_fit_changes_nothing() -> None:
    seating = Seating(48)
    seating.seat({A: 16})
    assert seating.seat({A: 16, B: 33}) is None
    kept = seating.seat({A: 16})
    assert kept is not None and kept.newcomers == ()
    assert Seating(0).seat({A: 1}) is None
    nobody = Seating(0).seat({})
    assert nobody is not None and nobody.width == 0


def test_random_comings_and_goings() -> None:
    chance, seating, there = random.Random(3), Seating(200), dict[AdapterId, range]()
    ranks = {AdapterId(str(number)): chance.choice((1, 4, 8, 16, 64)) for number in range(30)}
    for _ in range(2_000):
        wanted = {adapter: ranks[adapter] for adapter in chance.sample(list(ranks), chance.randrange(6))}
        seats = seating.seat(wanted)
        needed = sum(wanted.values())
        if seats is None:
            assert needed > 200
            continue
        assert seats.width == (bucket(needed, 200, 16) if needed else 0)
        assert {adapter: len(rows) for adapter, rows in seats.rows.items()} == wanted
        taken = [row for rows in seats.rows.values() for row in rows]
        assert len(set(taken)) == len(taken) and all(row < seats.width for row in taken)
        for adapter in wanted.keys() - seats.newcomers:
            assert there[adapter] == seats.rows[adapter], "nobody wrote on its rows since it sat down"
        for adapter in seats.newcomers:
            there = {other: rows for other, rows in there.items() if not set(rows) & set(seats.rows[adapter])} | {
                adapter: seats.rows[adapter]
            }
