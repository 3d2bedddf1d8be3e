"""Finds infinities and NaNs in weights, chunk by chunk.

One NaN in one adapter can reach every request in its batch, so none gets in. Owns that one check; needs no numpy, whose
import takes longer than reading a small upload does.
"""

from collections.abc import Iterator

from adapters.errors import Fault, quoted
from adapters.header import FILE, TensorSpec

# A float is infinite or NaN when every bit of its exponent is set. In float16 they are in its highest byte; in the
# others one more is the next byte's highest.
_F16_FULL = bytes((byte & 0x7C) == 0x7C for byte in range(256))
_FULL = bytes((byte & 0x7F) == 0x7F for byte in range(256))
_HIGHEST = bytes(byte >> 7 for byte in range(256))
_SIZES = {"F32": 4, "BF16": 2}


class NonFinite:
    """An inspection for `identity.digest` that counts the non-finite elements of each tensor."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def __call__(self, name: str, spec: TensorSpec, chunk: bytes) -> None:
        if spec.dtype == "F16":
            found = chunk[1::2].translate(_F16_FULL).count(1)
        elif spec.dtype in _SIZES:
            found = _full_in_two_bytes(chunk, _SIZES[spec.dtype])
        else:
            return
        if found:
            self.counts[name] = self.counts.get(name, 0) + found

    def faults(self) -> Iterator[Fault]:
        for name, count in self.counts.items():
            where, problem = f"{FILE}: {quoted(name)[1:-1]}", f"{count} elements are infinite or not a number"
            yield Fault(where, problem, "The training diverged, or a cast overflowed. Use an earlier step")


def _full_in_two_bytes(chunk: bytes, size: int) -> int:
    """How many little-endian elements of `size` bytes have all eight bits below their sign set."""
    full = chunk[size - 1 :: size].translate(_FULL)
    if not full.count(1):  # nothing is as large as 1.7e38, in nearly every chunk
        return 0
    highest = chunk[size - 2 :: size].translate(_HIGHEST)
    return (int.from_bytes(full, "little") & int.from_bytes(highest, "little")).bit_count()
