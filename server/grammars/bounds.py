"""How large a form may be before anybody reads it.

Owns these bounds. Knows no grammar library, and neither fields nor tokens.
"""

from collections.abc import Mapping
from typing import Any

MAX_BYTES = 1 << 16
MAX_CALL_BYTES = 1 << 18
"""Of all functions' schemas together."""
MAX_GRAMMAR_BYTES = 1 << 20
"""Of what is made of them."""
MAX_VALUES = 1 << 14
MAX_LEVELS = 64
"""Of a schema as it is written. Readers of JSON recurse."""


class TooLarge(ValueError):
    """The text says what there is too much of, and how much there may be."""


def check_text(text: str, most: int = MAX_BYTES) -> None:
    """Raises TooLarge."""
    check_size(len(text.encode()), most)


def check_size(size: int, most: int) -> None:
    """Raises TooLarge."""
    if size > most:
        raise TooLarge(f"it is longer than {most} bytes")


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises TooLarge. Without recursion."""
    seen = 0
    pending: list[tuple[object, int]] = [(schema, 1)]
    while pending:
        item, level = pending.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise TooLarge(f"it has more than {MAX_VALUES} values")
        if level > MAX_LEVELS:
            raise TooLarge(f"it is nested more than {MAX_LEVELS} levels deep")
        if isinstance(item, Mapping | list):
            within = item.values() if isinstance(item, Mapping) else item
            pending.extend((each, level + 1) for each in within)
