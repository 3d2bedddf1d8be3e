"""Which rows of buffers of a fixed size each adapter has, so that what is computed over them keeps its shape.

Owns that arithmetic alone; what the rows hold is `stage.py`'s. Knows no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from adapters.manifest import AdapterId

MIN_WIDTH = 16
"""The smallest width: narrower products are no faster."""


@dataclass(frozen=True, slots=True)
class RowAllocation:
    """Each adapter's rows, all below `width`; those of the `new` adapters are not filled yet."""

    rows: Mapping[AdapterId, range]
    new: tuple[AdapterId, ...]
    width: int


class RowAllocator:
    """Adapters keep their rows from step to step, also in steps without them, until others need the rows.

    Widths are 0 and powers of two, so that there are few, and always the least that the step's adapters fit in: a
    row more costs a read of its weights in every layer of every step, while moving all costs one copy.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: dict[AdapterId, range] = {}
        self._top = 0

    def allocate(self, ranks: Mapping[AdapterId, int]) -> RowAllocation | None:
        """Rows for all of `ranks`, which say how many each takes; None if there are not that many.

        The new ones have their rows from now on: the caller must fill them, or `clear`.
        """
        needed = sum(ranks.values())
        if needed > self.capacity:
            return None
        width = bucket(needed, self.capacity, MIN_WIDTH) if needed else 0
        new = tuple(adapter for adapter in ranks if adapter not in self._rows)
        after = self._top + sum(ranks[adapter] for adapter in new) if new else 0
        last = max((self._rows[adapter].stop for adapter in ranks if adapter in self._rows), default=0)
        if max(after, last) > width:
            self.clear()
            new = tuple(ranks)
        for adapter in new:
            self._rows[adapter] = range(self._top, self._top + ranks[adapter])
            self._top += ranks[adapter]
        return RowAllocation({adapter: self._rows[adapter] for adapter in ranks}, new, width)

    def clear(self) -> None:
        """Take all rows back."""
        self._rows, self._top = {}, 0


def bucket(count: int, most: int, least: int = 1) -> int:
    """The smallest of `least`, its doubles and `most` that holds `count`."""
    assert count <= most
    size = least
    while size < count:
        size *= 2
    return min(size, most)
