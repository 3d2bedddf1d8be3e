"""One live server for the tests of a folder's file, over the fake engine and a real catalog."""

import logging
from collections.abc import Iterator

import httpx
import pytest
import structlog

from tests.support.face import Face, make_face
from tests.support.http import LiveServer, serve


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    """The server's thread writes past pytest's capture; keep that to errors."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Face]:
    made = make_face(tmp_path_factory.mktemp("face"))
    yield made
    made.registry.close()


@pytest.fixture(scope="module")
def live(face: Face) -> Iterator[LiveServer]:
    with serve(face.app) as server:
        yield server


@pytest.fixture(scope="module")
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with live.client() as client:
        yield client
