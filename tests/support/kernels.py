"""The compiled kernels, built once for all tests; a test that needs them is skipped where there is no compiler."""

from functools import cache
from pathlib import Path

import pytest

from native.build import Form
from native.errors import Unavailable
from native.kernels import Kernels, load

CACHE = Path(__file__).parents[2] / ".pytest_cache" / "kernels"


@cache
def kernels(form: Form | None = None) -> Kernels:
    """Those that the server would take, or those of one form: see `native.build.build`."""
    try:
        return load(CACHE, form)
    except Unavailable as reason:
        pytest.skip(str(reason))
