"""G74: a wall clock that jumps by an hour changes nothing for whatever waits, limits, counts or leases."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAITING = (
    "tests/engine/test_worker.py",
    "tests/faults/test_engine_restart.py",
    "tests/adapters/test_catalog.py::test_d42_upload_delete_and_lease_race",
    "tests/http/test_streams.py::test_f64_a_stalled_body_is_408",
    "tests/http/test_streams.py::test_f62_a_client_that_does_not_read_is_cut_off",
)
"""Their own tests, in a process whose clock jumps at each look."""


def test_g74_timeouts_limits_and_leases_do_not_look_at_the_wall_clock() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.jumping_clock", "-p", "no:cacheprovider"]
    ended = subprocess.run([*command, *WAITING], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
