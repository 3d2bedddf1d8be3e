"""What a request's answer may be, as the engine sees it: a set of tokens for each step.

Owns the interface. Knows neither grammars nor text: who reads a grammar and a vocabulary hands the engine an object
that follows one sequence.
"""

from typing import Protocol


class Constraint(Protocol):
    """Follows the tokens of one sequence. Used on the engine's thread only, and told each token once."""

    def allowed(self) -> bytes:
        """A bit for each token id, the lowest id in a byte's lowest bit: whether it may come next.

        An end-of-sequence token is among them exactly where the answer may end. Asked twice, it says the same.
        Raises ConstraintFailed.
        """
        ...

    def accept(self, token: int) -> None:
        """The sequence has gained `token`, which was allowed and does not end it. Raises ConstraintFailed."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the answer is whole, and nothing may follow it."""
        ...
