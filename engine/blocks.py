"""Who holds which KV block, and which full blocks can be shared again.

Owns block numbers, reference counts and prefix hashes (paged attention, arXiv 2309.06180).
Knows neither torch nor what a block contains.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence


def prefix_hashes(tokens: Sequence[int], block_size: int, root: bytes, known: Sequence[bytes] = ()) -> list[bytes]:
    """Hash every full block of `tokens`, chained so that a hash names a block and all that precedes it.

    `h[i] = sha256(h[i-1] + tokens of block i)`, `h[-1] = root`. `known` holds hashes that were computed before.
    """
    hashes = list(known)
    for start in range(len(hashes) * block_size, len(tokens) - block_size + 1, block_size):
        block = array("q", tokens[start : start + block_size]).tobytes()
        hashes.append(hashlib.sha256((hashes[-1] if hashes else root) + block).digest())
    return hashes


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens. A free block keeps its content, and its hash, until it is reused.

    A block is free (count 0, in `_free`, oldest first) or used (count ≥ 1).
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks > 0 and block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix."""
        return list(self._known(hashes))

    def can_allocate(self, count: int, shared: Sequence[int] = ()) -> bool:
        """Whether `count` new blocks remain once the `shared` blocks have been taken as well."""
        return count + sum(block in self._free for block in shared) <= len(self._free)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Take one more reference on each block."""
        for block in blocks:
            self._free.pop(block, None)
            self._counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take the `count` free blocks whose content has been unused the longest, and forget that content."""
        assert count <= len(self._free), "ask can_allocate first"
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._forget(block)
            self._counts[block] = 1
        return taken

    def publish(self, block: int, block_hash: bytes) -> None:
        """Let others find a full block by its hash. The first block published under a hash keeps it."""
        assert self._counts[block] > 0, "only a used block has content worth finding"
        if block not in self._hash_of and block_hash not in self._block_of:
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference on each block; the end of a prefix becomes reusable before its beginning."""
        for block in reversed(blocks):
            assert self._counts[block] > 0, f"block {block} was released twice"
            self._counts[block] -= 1
            if self._counts[block] == 0:
                self._free[block] = None
                if block not in self._hash_of:  # nothing to find again: reuse it first
                    self._free.move_to_end(block, last=False)

    def forget(self, blocks: Iterable[int]) -> None:
        """Let nobody find these any more; used blocks stay with their holders."""
        for block in blocks:
            self._forget(block)

    def forget_content(self) -> None:
        """Make no prefix findable any more; used blocks stay with their holders."""
        self._hash_of.clear()
        self._block_of.clear()

    def check_integrity(self) -> None:
        """Assert that free + used = total, and that hashes and blocks name each other."""
        assert all((count == 0) == (block in self._free) for block, count in enumerate(self._counts))
        assert all(count >= 0 for count in self._counts)
        assert {block: name for name, block in self._block_of.items()} == self._hash_of

    def _known(self, hashes: Iterable[bytes]) -> Iterator[int]:
        for name in hashes:
            block = self._block_of.get(name)
            if block is None:
                return
            yield block

    def _forget(self, block: int) -> None:
        name = self._hash_of.pop(block, None)
        if name is not None:
            del self._block_of[name]
