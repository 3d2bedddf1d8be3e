"""Memory in large pages: the same numbers, elsewhere."""

import mmap
from itertools import pairwise

import pytest
import torch
from torch import nn

from loader import pages


@pytest.mark.parametrize("count", [0, 1, 5000, pages.LARGE // 2, 3 * pages.LARGE // 2 + 7])
def test_it_is_memory_as_any_other(count: int) -> None:
    some, other = pages.empty(count, torch.bfloat16), pages.empty(count, torch.bfloat16)
    some.fill_(1), other.fill_(2)
    assert (some.shape, some.dtype, some.storage_offset()) == ((count,), torch.bfloat16, 0)
    assert some.sum(dtype=torch.float64) == count and bool((other == 2).all())


@pytest.mark.parametrize("count", [1, 5000, 3 * pages.LARGE // 2 + 7])
def test_it_is_zero_where_that_was_asked_for(count: int) -> None:
    some = pages.zeros(count, torch.bfloat16)
    assert some.shape == (count,) and not some.any()
    some.fill_(1)
    assert not pages.zeros(count, torch.bfloat16).any()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages to ask for")
def test_what_is_worth_a_large_page_begins_with_one() -> None:
    assert pages.empty(pages.LARGE, torch.uint8).data_ptr() % pages.LARGE == 0


@pytest.mark.parametrize("count", [7, pages.LARGE // 2, 3 * pages.LARGE + 11])
def test_what_fills_together_meets_the_ends_of_pages_one_after_the_other(count: int) -> None:
    several = pages.apart(count, torch.bfloat16, 60)
    assert all(one.shape == (count,) and not one.any() for one in several)
    for number, one in enumerate(several):
        one.fill_(number)
    assert all(bool((one == number).all()) for number, one in enumerate(several)), "none lies over another"
    if count * 2 >= pages.LARGE:
        within = sorted(one.data_ptr() % pages.LARGE for one in several)
        apart = [after - before for before, after in pairwise([*within, within[0] + pages.LARGE])]
        assert min(apart) > pages.LARGE / 60 / 3 and max(apart) < 3 * pages.LARGE / 60


def test_what_is_let_go_is_lent_again_and_to_nobody_before() -> None:
    pool, count = pages.Pool(4 * pages.LARGE), 2 * pages.LARGE
    first = pool.empty(count, torch.bfloat16)
    begin, part = first.data_ptr(), first[7:9].fill_(3)
    del first
    other = pool.empty(count, torch.bfloat16)
    assert other.data_ptr() != begin and begin % pages.LARGE == 0
    other.fill_(4)
    assert part.tolist() == [3, 3]
    del part
    again, fewer = pool.empty(count // 2 - 5, torch.float32), (count // 2 - 5,)
    assert (again.data_ptr(), again.shape, again.dtype) == (begin, fewer, torch.float32)


def test_the_latest_are_kept_as_far_as_they_fit_the_limit() -> None:
    pool, count = pages.Pool(2 * pages.LARGE + 9), pages.LARGE
    lent = [pool.empty(count, torch.uint8) for _ in range(3)]
    begins = [one.data_ptr() for one in lent]
    while lent:
        del lent[0]  # in the order in which they were lent
    again = [pool.empty(count, torch.uint8).data_ptr()]
    held = [pool.empty(count, torch.uint8) for _ in range(2)]
    assert again[0] in begins[1:] and {one.data_ptr() for one in held} == set(begins[1:])


def test_what_is_larger_than_the_limit_is_not_kept_and_drives_nothing_out() -> None:
    pool = pages.Pool(pages.LARGE)
    begins = [pool.empty(count, torch.uint8).data_ptr() for count in (pages.LARGE, 2 * pages.LARGE)]
    assert pool.empty(pages.LARGE, torch.uint8).data_ptr() == begins[0]


@pytest.mark.parametrize("count", [pages.LARGE, 3 * pages.LARGE])
def test_memory_is_lent_to_what_needs_nearly_as_much(count: int) -> None:
    pool = pages.Pool(4 * pages.LARGE)
    begin = pool.empty(2 * pages.LARGE, torch.uint8).data_ptr()
    other = pool.empty(count, torch.uint8)
    assert other.data_ptr() != begin and len(other.fill_(1)) == count
    assert pool.empty(2 * pages.LARGE - 9, torch.uint8).data_ptr() == begin


def test_little_is_memory_as_any_other() -> None:
    assert [len(pages.Pool(pages.LARGE).empty(count, torch.bfloat16)) for count in (0, 1, 5000)] == [0, 1, 5000]


def test_a_models_parameters_lie_side_by_side_and_are_what_they_were() -> None:
    table, head, other = nn.Embedding(50, 7), nn.Linear(7, 50), nn.Linear(7, 3).bfloat16()
    head.weight = table.weight
    other.weight.data = other.weight.data.t().contiguous().t()
    model = nn.ModuleList([table, head, other])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pages.move(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert head.weight is table.weight
    assert len({parameter.untyped_storage().data_ptr() for parameter in after.values()}) == 1
    assert all(parameter.data_ptr() % 64 == 0 for parameter in after.values())
