"""Infinities and NaNs are found by their bits, in every type that an adapter's file may have."""

import numpy as np
import pytest

from adapters.finite import NonFinite
from adapters.header import TensorSpec

EVERY_HALF = np.arange(1 << 16, dtype="<u2").tobytes()
WORDS = np.random.default_rng(0).integers(1 << 32, size=1 << 16, dtype=np.uint64).astype("<u4").tobytes()
"""Of random words one in 256 is not finite."""
CASES = {"F16": EVERY_HALF, "BF16": EVERY_HALF, "F32": WORDS}


def by_arithmetic(dtype: str, content: bytes) -> int:
    """bfloat16 is the upper half of float32."""
    if dtype == "BF16":
        floats = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        floats = np.frombuffer(content, "<f2" if dtype == "F16" else "<f4")
    return int(np.count_nonzero(~np.isfinite(floats)))


@pytest.mark.parametrize("dtype", CASES)
def test_each_number_is_counted_once(dtype: str) -> None:
    content, half = CASES[dtype], len(CASES[dtype]) // 2
    spec, found = TensorSpec(dtype, (1,), 0, len(content)), NonFinite()
    found("a", spec, content[:half])
    found("a", spec, content[half:])
    assert found.counts == {"a": by_arithmetic(dtype, content)} and found.counts["a"] > 100


def test_what_is_large_is_finite_and_other_types_are_not_looked_at() -> None:
    found = NonFinite()
    largest = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, 0], np.float32)
    found("a", TensorSpec("F32", (3,), 0, 12), largest.tobytes())
    found("b", TensorSpec("I32", (1,), 0, 4), b"\xff\xff\xff\x7f")
    assert not found.counts and not list(found.faults())
