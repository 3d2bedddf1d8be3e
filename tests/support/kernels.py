"""The compiled kernels, built once for all tests; a test that needs them is skipped where there is no compiler."""

import contextlib
import shutil
from functools import cache
from pathlib import Path

import pytest

from loader.kernels import FOLDER
from native.build import Arithmetic, build
from native.errors import Unavailable
from native.kernels import Kernels, load

CACHE = Path(__file__).parents[2] / ".pytest_cache" / "kernels"


@cache
def kernels(arithmetic: Arithmetic | None = None) -> Kernels:
    """Those that the server would take, or those of one arithmetic: see `native.build.build`."""
    try:
        return load(CACHE, arithmetic)
    except Unavailable as reason:
        pytest.skip(str(reason))


def furnished(data: Path) -> Path:
    """`data`, with kernels where an earlier start on it would have left them: compiling them takes longer than many a
    test."""
    with contextlib.suppress(Unavailable):
        library = build(CACHE)
        (data / FOLDER).mkdir(parents=True, exist_ok=True)
        shutil.copy(library, data / FOLDER)
    return data
