"""What every test shares: the asyncio backend for `@pytest.mark.anyio`, logs that one file cannot set up for the next,
and one live server a file, over the fake engine and a real catalog. Helpers live in tests/support."""

from collections.abc import Iterator

import pytest
import structlog

from tests.support.http import LiveServer, serve
from tests.support.server_rig import ServerRig, make_rig


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
def _logs_as_before() -> Iterator[None]:
    """structlog's set-up is the process's; a file that changes it gives it back."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerRig]:
    made = make_rig(tmp_path_factory.mktemp("rig"))
    yield made
    made.registry.close()


@pytest.fixture(scope="module")
def live(rig: ServerRig) -> Iterator[LiveServer]:
    with serve(rig.app) as server:
        yield server
