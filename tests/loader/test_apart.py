"""A function apart: it is run in another process, what it raises arrives, and an early end is told for what it was."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loader.apart import EndedEarly, run_apart

ROOT = Path(__file__).parents[2]
CONVERT = (
    "from pathlib import Path; from loader.gguf import _write_apart; _write_apart(Path('some.gguf'), Path('made'))"
)


def write_pid(target: Path) -> None:
    target.write_text(str(os.getpid()))


def fail(text: str) -> None:
    raise ValueError(text)


def end_by(what: int) -> None:
    os.kill(os.getpid(), what)


def test_it_runs_in_another_process(tmp_path: Path) -> None:
    run_apart(write_pid, tmp_path / "pid")
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_what_it_raises_arrives_with_its_traceback() -> None:
    with pytest.raises(ValueError, match="no such tensor") as raised:
        run_apart(fail, "no such tensor")
    assert "in fail" in raised.value.__notes__[0]


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_is_named(what: signal.Signals) -> None:
    with pytest.raises(EndedEarly, match=what.name) as raised:
        run_apart(end_by, what)
    assert raised.value.killed == (what is signal.SIGKILL)


def test_an_exit_code_is_told() -> None:
    with pytest.raises(EndedEarly, match="exit code 3"):
        run_apart(os._exit, 3)


def test_a_conversion_from_standard_input_is_not_said_to_lack_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-"],
        input=CONVERT,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env={"PYTHONPATH": "."},
    )
    said = done.stderr.splitlines()[-1]
    assert "exit code 1" in said and "__main__" in said
    assert "memory" not in said


def test_a_conversion_in_an_unguarded_script_says_how_to_guard_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(CONVERT)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(ROOT)})
    assert "__main__" in done.stderr.splitlines()[-1]
    assert "memory" not in done.stderr
