"""`rootstock bench`: it hands over to the scales, which answer without torch; where they are missing, it says so."""

import subprocess
import sys
from pathlib import Path

import pytest

from server.commands import bench
from server.commands.errors import CommandFailed

ROOTSTOCK = "import sys; from server.cli import main; sys.argv[0] = 'rootstock'; main()"
WITHOUT_TORCH = """
import sys
import bench.commands
heavy = {"torch", "transformers", "peft", "matplotlib", "server", "engine", "loader"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""

WITHOUT_ITS_LIBRARIES = "import sys; sys.modules['aiohttp'] = None; from bench.__main__ import main; main()"


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_list_of_scales_is_shown_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__main__.py").write_text("print('another bench')")
    ended = python("-c", ROOTSTOCK, "bench", "--help", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for command in ("run", "compare", "peers", "regress", "scale", "reuse", "sampling", "overhead", "step", "limits"):
        assert f" {command} " in ended.stdout


def test_flags_and_exit_codes_pass_through(tmp_path: Path) -> None:
    ended = python("-c", ROOTSTOCK, "bench", "limits", str(tmp_path), "--context", "0", cwd=tmp_path)
    assert ended.returncode == 2
    assert "--context" in ended.stderr


def test_after_make_serve_alone_it_says_what_is_missing() -> None:
    ended = python("-c", WITHOUT_ITS_LIBRARIES, "step", cwd=bench.ROOT)
    assert ended.returncode == 1
    assert "aiohttp is missing" in ended.stderr and "make setup" in ended.stderr and "Traceback" not in ended.stderr


def test_nothing_heavy_is_imported_for_the_list(tmp_path: Path) -> None:
    ended = python("-c", WITHOUT_TORCH, cwd=bench.ROOT)
    assert ended.returncode == 0, ended.stderr


def test_a_server_without_the_bench_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    with pytest.raises(CommandFailed, match="clone of the repository"):
        bench.bench(["run"])
