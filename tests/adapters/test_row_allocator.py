"""Rows for adapters: none overlap, who stays keeps its rows, and the width is the least that will do."""

import random

import pytest

from adapters.manifest import AdapterId
from adapters.row_allocator import RowAllocator, bucket


def ids(*names: str) -> list[AdapterId]:
    return [AdapterId(name) for name in names]


A, B, C = ids("a", "b", "c")


@pytest.mark.parametrize("count, size", [(1, 1), (2, 2), (3, 4), (5, 8), (33, 40), (40, 40)])
def test_buckets_are_powers_of_two_and_the_largest(count: int, size: int) -> None:
    assert bucket(count, 40) == size
    assert bucket(count, 40, least=16) == max(size, 16)


def test_a_new_adapter_is_put_beside_those_that_are_there() -> None:
    allocator = RowAllocator(64)
    first = allocator.allocate({A: 8})
    assert first is not None and (first.rows[A], first.new, first.width) == (range(8), (A,), 16)
    second = allocator.allocate({A: 8, B: 4})
    assert second is not None and (second.new, second.rows[B], second.width) == ((B,), range(8, 12), 16)
    back = allocator.allocate({A: 8})
    assert back is not None and back.new == () and back.rows == {A: range(8)}, "B's rows wait for it"


def test_all_move_up_when_the_step_would_be_wider_than_it_need_be() -> None:
    allocator = RowAllocator(64)
    allocator.allocate({A: 16, B: 16})
    alone = allocator.allocate({B: 16})
    assert alone is not None and (alone.rows, alone.new, alone.width) == ({B: range(16)}, (B,), 16)
    allocator.allocate({C: 16, B: 16})
    wide = allocator.allocate({A: 32, C: 16})
    assert wide is not None and wide.width == 64 and set(wide.new) == {A}


def test_what_does_not_fit_changes_nothing() -> None:
    allocator = RowAllocator(48)
    allocator.allocate({A: 16})
    assert allocator.allocate({A: 16, B: 33}) is None
    kept = allocator.allocate({A: 16})
    assert kept is not None and kept.new == ()
    assert RowAllocator(0).allocate({A: 1}) is None
    none = RowAllocator(0).allocate({})
    assert none is not None and none.width == 0


def test_random_comings_and_goings() -> None:
    chance, allocator, there = random.Random(3), RowAllocator(200), dict[AdapterId, range]()
    ranks = {AdapterId(str(number)): chance.choice((1, 4, 8, 16, 64)) for number in range(30)}
    for _ in range(2_000):
        wanted = {adapter: ranks[adapter] for adapter in chance.sample(list(ranks), chance.randrange(6))}
        allocation = allocator.allocate(wanted)
        needed = sum(wanted.values())
        if allocation is None:
            assert needed > 200
            continue
        assert allocation.width == (bucket(needed, 200, 16) if needed else 0)
        assert {adapter: len(rows) for adapter, rows in allocation.rows.items()} == wanted
        taken = [row for rows in allocation.rows.values() for row in rows]
        assert len(set(taken)) == len(taken) and all(row < allocation.width for row in taken)
        for adapter in wanted.keys() - allocation.new:
            assert there[adapter] == allocation.rows[adapter], "nothing was written on its rows since it got them"
        for adapter in allocation.new:
            there = {other: rows for other, rows in there.items() if not set(rows) & set(allocation.rows[adapter])} | {
                adapter: allocation.rows[adapter]
            }
