"""Everything is looked through when nobody is being answered, and now and then in any case."""

import gc
from collections.abc import Iterator
from weakref import ref

import pytest

from server.garbage import LONGEST_S, Garbage

pytestmark = pytest.mark.anyio


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def settings_of_others() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def old_garbage() -> "ref[Cycle]":
    """What has outlived a look through the younger ones, which then was no garbage yet."""
    cycle = Cycle()
    gc.collect(1)
    return ref(cycle)


@pytest.mark.parametrize(("busy", "waited_s", "gone"), [(False, 0, True), (True, 0, False), (True, LONGEST_S, True)])
async def test_old_garbage_waits_until_nobody_is_answered_but_not_for_ever(
    busy: bool, waited_s: float, gone: bool
) -> None:
    now = [0.0]
    garbage = Garbage(lambda: busy, lambda: now[0])
    garbage.settle()
    cycle = old_garbage()
    gc.collect(1)
    assert cycle() is not None
    now[0] += waited_s
    await garbage.collect()
    assert (cycle() is None) is gone


async def test_a_server_with_nothing_new_does_not_look() -> None:
    garbage = Garbage(lambda: False)
    garbage.settle()
    before = gc.get_stats()[2]["collections"]
    await garbage.collect()
    assert gc.get_stats()[2]["collections"] == before
