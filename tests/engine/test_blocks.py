"""Blocks are counted, shared and reused; a prefix's hash names everything before it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.blocks import BlockPool, prefix_hashes


def test_only_full_blocks_have_a_hash() -> None:
    assert [len(prefix_hashes(range(n), 4, b"")) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


def test_a_hash_names_all_that_precedes_it() -> None:
    first = prefix_hashes([1, 2, 3, 4, 5, 6], 2, b"root")
    assert prefix_hashes([9, 2, 3, 4, 5, 6], 2, b"root")[2] != first[2]
    assert prefix_hashes([1, 2, 3, 4, 5, 6], 2, b"other") != first
    assert prefix_hashes([1, 2, 3, 4, 7, 8], 2, b"root")[:2] == first[:2]


def test_known_hashes_are_continued() -> None:
    tokens = list(range(12))
    whole = prefix_hashes(tokens, 4, b"root")
    assert prefix_hashes(tokens, 4, b"root", known=whole[:2]) == whole
    assert prefix_hashes(tokens, 4, b"root", known=whole) == whole


def test_large_and_negative_token_ids_do_not_collide() -> None:
    assert prefix_hashes([2**40], 1, b"") != prefix_hashes([0], 1, b"")


def test_blocks_for_rounds_up() -> None:
    pool = BlockPool(8, 4)
    assert [pool.blocks_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_a_released_prefix_is_found_until_its_block_is_reused() -> None:
    pool = BlockPool(2, 4)
    (block,) = pool.allocate(1)
    pool.publish(block, b"a")
    pool.release([block])
    assert pool.match([b"a", b"b"]) == [block]
    taken = pool.allocate(2)
    assert block in taken and pool.match([b"a"]) == []


def test_a_match_ends_at_the_first_unknown_block() -> None:
    pool = BlockPool(4, 4)
    blocks = pool.allocate(3)
    for block, name in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.publish(block, name)
    assert pool.match([b"a", b"x", b"c"]) == blocks[:1]


def test_least_recently_used_content_goes_first_and_a_prefix_from_its_end() -> None:
    pool = BlockPool(6, 4)
    old, young = pool.allocate(2), pool.allocate(2)
    for block, name in zip((*old, *young), (b"o0", b"o1", b"y0", b"y1"), strict=True):
        pool.publish(block, name)
    pool.release(old)
    pool.release(young)
    pool.allocate(2)  # the two that were never used
    assert pool.allocate(3) == [old[1], old[0], young[1]]


def test_blocks_without_content_are_reused_before_any_prefix() -> None:
    pool = BlockPool(3, 4)
    kept, plain = pool.allocate(1), pool.allocate(2)
    pool.publish(kept[0], b"kept")
    pool.release(kept)
    pool.release(plain)
    assert set(pool.allocate(2)) == set(plain)
    assert pool.match([b"kept"]) == kept


def test_sharing_a_free_block_takes_it_out_of_the_free_ones() -> None:
    pool = BlockPool(2, 4)
    first = pool.allocate(1)
    pool.publish(first[0], b"a")
    pool.release(first)
    assert pool.can_allocate(1, first) and not pool.can_allocate(2, first)
    pool.acquire(first)
    pool.acquire(first)
    pool.release(first)
    assert pool.num_used == 1
    pool.release(first)
    assert pool.num_used == 0
    pool.check_integrity()


def test_the_first_block_published_under_a_hash_keeps_it() -> None:
    pool = BlockPool(2, 4)
    first, second = pool.allocate(2)
    pool.publish(first, b"a")
    pool.publish(second, b"a")
    pool.publish(first, b"b")
    assert pool.match([b"a"]) == [first] and pool.match([b"b"]) == []
    pool.check_integrity()


def test_forgetting_content_keeps_the_holders() -> None:
    pool = BlockPool(2, 4)
    (block,) = pool.allocate(1)
    pool.publish(block, b"a")
    pool.forget_content()
    assert pool.match([b"a"]) == [] and pool.num_used == 1
    pool.release([block])
    pool.check_integrity()


def test_what_is_forgotten_alone_is_found_no_more_and_kept_by_its_holder() -> None:
    pool = BlockPool(3, 4)
    first, second, third = pool.allocate(3)
    pool.publish(first, b"a")
    pool.publish(second, b"b")
    pool.forget([second, third])
    assert pool.match([b"a"]) == [first] and pool.match([b"b"]) == [] and pool.num_used == 3
    pool.release([first, second, third])
    pool.check_integrity()


class Blocks(RuleBasedStateMachine):
    """Holders take and give back blocks; what a hash finds is always the content that was published under it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(7, 2)
        self.holders: list[list[int]] = []
        self.content: dict[int, bytes] = {}

    @rule(count=st.integers(0, 4))
    def allocate(self, count: int) -> None:
        if self.pool.can_allocate(count):
            blocks = self.pool.allocate(count)
            held = {block for holder in self.holders for block in holder}
            assert len(set(blocks)) == count and not held & set(blocks)
            for block in blocks:
                self.content.pop(block, None)
            self.holders.append(blocks)
        else:
            assert count > self.pool.num_blocks - self.pool.num_used

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data(), name=st.binary(min_size=1, max_size=1))
    def publish(self, data: st.DataObject, name: bytes) -> None:
        block = data.draw(st.sampled_from([block for holder in self.holders for block in holder]))
        if block not in self.content and name not in self.content.values():
            self.content[block] = name
        self.pool.publish(block, name)

    @rule(names=st.lists(st.binary(min_size=1, max_size=1), max_size=3), count=st.integers(0, 3))
    def enter(self, names: list[bytes], count: int) -> None:
        """As the scheduler admits: what is known is shared, the rest allocated."""
        found = list(dict.fromkeys(self.pool.match(names)))
        assert [self.content[block] for block in self.pool.match(names)] == names[: len(self.pool.match(names))]
        if self.pool.can_allocate(count, found):
            self.pool.acquire(found)
            fresh = self.pool.allocate(count)
            for block in fresh:
                self.content.pop(block, None)
            self.holders.append(found + fresh)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))))

    @rule()
    def forget_content(self) -> None:
        self.pool.forget_content()
        self.content.clear()

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_used == len({block for holder in self.holders for block in holder})


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
