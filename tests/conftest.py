"""What every test shares: the asyncio backend for `@pytest.mark.anyio`. Helpers live in tests/support."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
