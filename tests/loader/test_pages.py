"""Memory in large pages: the same numbers, elsewhere."""

import mmap

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
