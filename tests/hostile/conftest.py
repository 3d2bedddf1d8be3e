"""One server a file, over the fake engine and a real catalog, and a canary that nothing may harm."""

import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import structlog

from adapters.provenance import ServedBase
from adapters.uploads import UploadLimits
from server.ports import Limits
from tests.support.adapters import write_adapter
from tests.support.checked_server import SHAPE, CheckedServer
from tests.support.http import LiveServer, serve
from tests.support.invariants import Invariants
from tests.support.server_rig import WEIGHTS, ServerRig, make_rig
from tests.support.surroundings import at_home


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckedServer]:
    folder = tmp_path_factory.mktemp("checked")
    fifty = UploadLimits(most_open=64)  # for the fifty that are finished at once
    rig = make_rig(folder / "server", base=ServedBase(SHAPE, lambda: WEIGHTS), uploads=fifty)
    canary, _ = rig.catalog.add_directory("canary", write_adapter(folder / "canary", SHAPE, seed=99))
    with at_home(folder), serve(rig.app) as live, live.client() as http:
        yield CheckedServer(rig, live, http, Invariants(rig, http, canary))
    rig.registry.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that would be taken."""
    return write_adapter(tmp_path_factory.mktemp("good"), SHAPE)


@pytest.fixture
def narrow_rig(tmp_path: Path) -> Iterator[ServerRig]:
    """It takes 2000 bytes at most, and waits two seconds."""
    limits = Limits(4096, max_upload_bytes=2000, idle_s=2)
    rig = make_rig(tmp_path / "server", limits=limits, uploads=UploadLimits(4, 6000))
    yield rig
    rig.registry.close()


@pytest.fixture
def narrow(narrow_rig: ServerRig) -> Iterator[LiveServer]:
    with serve(narrow_rig.app) as live:
        yield live


@pytest.fixture
def brief(tmp_path: Path) -> Iterator[ServerRig]:
    """Its uploads live for half a second."""
    rig = make_rig(tmp_path / "server", uploads=UploadLimits(age_s=0.5))
    yield rig
    rig.registry.close()


@pytest.fixture
def brief_http(brief: ServerRig) -> Iterator[httpx.Client]:
    with serve(brief.app) as live, live.client() as http:
        yield http
