"""The locust file against a server that answers at once, in a process of its own: locust patches the interpreter."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.fake_openai import FakeServer, running

ROOT = Path(__file__).parents[2]


def test_a_mix_of_adapters_is_driven_and_reported() -> None:
    fake = FakeServer([{"id": "base", "parent": None}, *({"id": f"a{index}", "parent": "base"} for index in range(3))])
    with running(fake) as url:
        flags = ["--headless", "--users", "2", "--spawn-rate", "2", "--run-time", "8s", "--only-summary", "--host", url]
        command = [sys.executable, "-m", "locust", "-f", "bench/locustfile.py", "--output-tokens", "5", *flags]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"Output tokens: [1-9]\d*, [\d.]+ tokens/s", ended.stdout)
    assert "TTFT" in ended.stdout + ended.stderr
    assert {request["model"] for request in fake.requests} == {"base", "a0", "a1", "a2"}
