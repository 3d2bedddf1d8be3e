"""What a caller wants to be true of a name or an alias before it is changed (RFC 9110, section 13.1).

Owns the comparison of version numbers: a number is never given to other content, so it shows whether anything was
changed meanwhile. Knows no HTTP: how a condition is spelled is the server's affair.
"""

from dataclasses import dataclass

from adapters.errors import ConditionFailed


@dataclass(frozen=True, slots=True)
class Condition:
    """`numbers` are the versions that may be current, None for any; `absent` asks that there be none yet."""

    numbers: frozenset[int] | None = None
    absent: bool = False

    def check(self, current: int | None) -> None:
        """`current` is the newest version of a name, or the one an alias points at. Raises ConditionFailed."""
        if self.absent:
            if current is not None:
                raise ConditionFailed(f"It is there already, at version {current}.")
        elif current is None:
            raise ConditionFailed("It is not there yet, or not any more.")
        elif self.numbers is not None and current not in self.numbers:
            raise ConditionFailed(f"It is at version {current} now. Look at it again before changing it.")


def check(condition: Condition | None, current: int | None) -> None:
    """Nothing, when nothing was asked. Raises ConditionFailed."""
    if condition is not None:
        condition.check(current)
