"""A client of the live server that every file shares among its tests."""

import logging
from collections.abc import Iterator

import httpx
import pytest
import structlog

from tests.support.http import LiveServer


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    """The server's thread writes past pytest's capture; keep that to errors."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture(scope="module")
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with live.client() as client:
        yield client
