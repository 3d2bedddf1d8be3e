"""The parsers under fuzzing, for seconds: mutated seeds always, and atheris where it is installed."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
JUNK = st.binary(max_size=8) | st.sampled_from(
    [b'"', b"{", b"}", b"[", b",", b"\\u0000", b"1e999", b"-", b"null", b"\xff"]
)
EDITS = st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 16), JUNK), max_size=6)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_mutated_seeds_are_read_or_refused(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=300, derandomize=True, deadline=None)
    @given(st.sampled_from(target.seeds), EDITS)
    def mutate(seed: bytes, edits: list[tuple[int, int, bytes]]) -> None:
        data = bytearray(seed)
        for at, length, junk in edits:
            at = min(at, len(data))
            data[at : at + length] = junk
        target.parse(bytes(data))

    mutate()


def test_make_fuzz_runs_every_target() -> None:
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("FUZZ_TARGETS"))
    assert line.split()[2:] == sorted(TARGETS)


@pytest.mark.parametrize("name", sorted(TARGETS))
@pytest.mark.skipif(find_spec("atheris") is None, reason="the extra `fuzz` is not installed")
def test_atheris_finds_nothing_in_seconds(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", "2", "--corpus", "kept"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done" in done.stderr, "it ran to its end"
    assert len(list((tmp_path / "kept").iterdir())) > len(TARGETS[name].seeds), "for the next run"
