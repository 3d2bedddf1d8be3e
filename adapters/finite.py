"""Finds infinities and NaNs in weights, chunk by chunk.

One NaN in one adapter can reach every request in its batch, so none gets in. Owns that one check; needs numpy only.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from adapters.errors import Fault, quoted
from adapters.header import FILE, TensorSpec

# A float is infinite or NaN when every bit of its exponent is set; testing the bits works for bfloat16 as well.
_EXPONENT: Mapping[str, tuple[str, int]] = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


class NonFinite:
    """An inspection for `identity.digest` that counts the non-finite elements of each tensor."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def __call__(self, name: str, spec: TensorSpec, chunk: bytes) -> None:
        if spec.dtype not in _EXPONENT:
            return
        integer, exponent = _EXPONENT[spec.dtype]
        bits = np.frombuffer(chunk, dtype=integer)
        found = int(np.count_nonzero((bits & exponent) == exponent))
        if found:
            self.counts[name] = self.counts.get(name, 0) + found

    def faults(self) -> Iterator[Fault]:
        for name, count in self.counts.items():
            where, problem = f"{FILE}: {quoted(name)[1:-1]}", f"{count} elements are infinite or not a number"
            yield Fault(where, problem, "The training diverged, or a cast overflowed. Use an earlier step")
