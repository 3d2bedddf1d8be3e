"""The audit of pinned versions: what fails it, and what it says when nobody could be asked."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[2] / ".ci" / "audit.py"
SOUND = {"name": "sound", "version": "1.0", "vulns": []}
HURT = {"name": "hurt", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}


def audit(tmp_path: Path, says: str, *flags: str, fails: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run it with a pip-audit that says just that."""
    fake = tmp_path / "pip-audit"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\nprint({says!r})\nprint('no route', file=sys.stderr)\nsys.exit({fails})\n"
    )
    fake.chmod(0o755)
    command = [sys.executable, str(AUDIT), str(fake), "constraints.txt", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def report(*packages: Mapping[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_sound_versions_pass_and_gaps_are_told(tmp_path: Path) -> None:
    ended = audit(tmp_path, report(SOUND, UNKNOWN))
    assert ended.returncode == 0
    assert "1 of 2 packages audited, 0 advisories" in ended.stdout and "not audited: unknown" in ended.stdout


def test_a_known_vulnerability_fails(tmp_path: Path) -> None:
    ended = audit(tmp_path, report(SOUND, HURT), fails=1)
    assert ended.returncode == 1
    assert "hurt 1.0: PYSEC-1, fixed in 1.1" in ended.stdout


@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--strict",), 2)])
@pytest.mark.parametrize(("says", "why"), [("", "no route"), (report(UNKNOWN, UNKNOWN), "knows none of the 2")])
def test_an_audit_that_could_not_be_done_says_so_and_fails_only_where_it_must_be_done(
    tmp_path: Path, says: str, why: str, flags: tuple[str, ...], code: int
) -> None:
    ended = audit(tmp_path, says, *flags, fails=1)
    assert ended.returncode == code
    assert "WARNING: NOT DONE" in ended.stderr and why in ended.stderr


def test_strictness_changes_no_verdict(tmp_path: Path) -> None:
    assert audit(tmp_path, report(SOUND, UNKNOWN), "--strict").returncode == 0
    assert audit(tmp_path, report(SOUND, HURT), "--strict", fails=1).returncode == 1
