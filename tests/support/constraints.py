"""Constraints without grammars: sets of tokens, and a note of what they were told."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from engine.errors import ConstraintFailed


def bits(tokens: Collection[int], size: int = 4096) -> bytes:
    """One bit a token, the lowest in a byte's lowest bit."""
    packed = bytearray(size // 8)
    for token in tokens:
        packed[token // 8] |= 1 << token % 8
    return bytes(packed)


@dataclass
class Only:
    """Allows the same tokens at every step, until it has been told `length` of them; fails at the `fails_at`-th."""

    tokens: Collection[int]
    length: int | None = None
    fails_at: int | None = None
    told: list[int] = field(default_factory=list)

    def allowed(self) -> bytes:
        if self.fails_at is not None and len(self.told) >= self.fails_at:
            raise ConstraintFailed("too many")
        return bits(self.tokens)

    def accept(self, token: int) -> None:
        assert token in self.tokens
        self.told.append(token)

    @property
    def complete(self) -> bool:
        return len(self.told) == self.length


@dataclass
class Script:
    """Allows exactly the given tokens, one after the other; nothing may follow them."""

    tokens: Sequence[int]
    told: list[int] = field(default_factory=list)

    def allowed(self) -> bytes:
        return bits([self.tokens[len(self.told)]])

    def accept(self, token: int) -> None:
        assert token == self.tokens[len(self.told)]
        self.told.append(token)

    @property
    def complete(self) -> bool:
        return len(self.told) == len(self.tokens)
