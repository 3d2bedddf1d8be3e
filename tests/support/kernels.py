"""The compiled kernels, built once for all tests; a test that needs them is skipped where there is no compiler."""

from functools import cache
from pathlib import Path

import pytest

from native.errors import Unavailable
from native.kernels import Kernels, load

CACHE = Path(__file__).parents[2] / ".pytest_cache" / "kernels"


@cache
def kernels() -> Kernels:
    try:
        return load(CACHE)
    except Unavailable as reason:
        pytest.skip(str(reason))
