"""G74: a wall clock that jumps by an hour changes nothing for whatever waits, limits, counts, leases or bills."""

import inspect
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from adapters.clock import Clock
from adapters.errors import UnknownUpload
from adapters.upload_files import UploadSpec
from adapters.uploads import UploadLimits, Uploads
from engine.restarts import Restarts
from server.garbage import Garbage
from server.keys.ring import KeyRing
from server.principal import Scope
from server.quotas.tenant_quotas import Quotas
from tests.support.keys import stored_keys

HOUR_S = 3600
ROOT = Path(__file__).parents[2]
PARTS = {
    "waits, leases and restarts": (
        "tests/engine/test_worker.py",
        "tests/faults/test_engine_restart.py",
        "tests/adapters/test_catalog.py::test_d42_upload_delete_and_lease_race",
        "tests/http/test_streams.py::test_f64_a_stalled_body_is_408",
        "tests/http/test_streams.py::test_f62_a_client_that_does_not_read_is_cut_off",
    ),
    "quotas, keys and usage": (
        "tests/server/test_quotas.py",
        "tests/http/test_quotas.py",
        "tests/server/keys/test_ring.py",
        "tests/server/test_usage.py",
        "tests/http/test_usage.py",
    ),
    "uploads, aliases and canaries": (
        "tests/http/test_uploads.py",
        "tests/http/test_versions.py",
        "tests/adapters/test_aliases.py",
        "tests/faults/test_dossiers.py::test_g70_grants_pins_canaries_scores_and_history_come_back",
    ),
}
"""Their own tests, in a process whose clock jumps at each look."""


@pytest.mark.parametrize("part", PARTS)
def test_g74_timeouts_limits_and_leases_do_not_look_at_the_wall_clock(part: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.jumping_clock", "-p", "no:cacheprovider"]
    ended = subprocess.run([*command, *PARTS[part]], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("owner", [Quotas, Restarts, Garbage])
def test_g74_the_clock_is_one_that_cannot_be_set(owner: type[object]) -> None:
    """Of those whose own tests turn a clock of theirs."""
    assert inspect.signature(owner).parameters["clock"].default is time.monotonic


class Hands:
    """Both clocks, to be moved."""

    def __init__(self, wall: float = 1e9) -> None:
        self.wall, self.passed = wall, 0.0
        self.clock = Clock(lambda: self.wall, lambda: self.passed)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.passed += seconds


@pytest.mark.parametrize("jump", [HOUR_S, -HOUR_S])
def test_g74_an_upload_lives_as_long_as_it_was_told(tmp_path: Path, jump: int) -> None:
    hands = Hands()
    uploads = Uploads(tmp_path, UploadLimits(age_s=1800), hands.clock.steady)
    session, _ = uploads.begin(UploadSpec("", "x", None, b"{}", 5))
    hands.wall += jump
    hands.wait(1700)
    assert uploads.collect() == 0 and uploads.find("", session.id)[0] == session
    hands.wait(200)
    with pytest.raises(UnknownUpload):
        uploads.find("", session.id)
    assert uploads.collect() == 1


@pytest.mark.anyio
async def test_g74_a_key_that_expired_does_not_live_again_when_the_clock_is_set_back(tmp_path: Path) -> None:
    with stored_keys(tmp_path) as store:
        key, text = store.create("acme", "p", [Scope.INFER], timedelta(minutes=30))
        hands = Hands(key.created.timestamp())
        ring, headers = KeyRing(store, "on", now=hands.clock.latest), [f"Bearer {text}"]
        assert await ring.authenticate(headers) == key.principal
        hands.wall -= HOUR_S
        hands.wait(1700)
        assert await ring.authenticate(headers) == key.principal, "nor does it live longer or shorter"
        hands.wait(200)
        assert await ring.authenticate(headers) is None
        hands.wall -= HOUR_S
        assert await ring.authenticate(headers) is None


@pytest.mark.anyio
async def test_g74_a_clock_that_was_behind_at_the_start_is_believed_once_it_is_put_right(tmp_path: Path) -> None:
    """The one jump that a key does follow: it is refused too early rather than taken too late."""
    with stored_keys(tmp_path) as store:
        key, text = store.create("acme", "p", [Scope.INFER], timedelta(minutes=30))
        hands = Hands(key.created.timestamp() - HOUR_S)
        ring, headers = KeyRing(store, "on", now=hands.clock.latest), [f"Bearer {text}"]
        assert await ring.authenticate(headers) == key.principal
        hands.wall += 2 * HOUR_S
        assert await ring.authenticate(headers) is None
