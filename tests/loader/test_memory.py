"""Sizes as text, and the readings of /proc and cgroup files."""

from pathlib import Path

import pytest

from loader.memory import available_host_bytes, format_bytes

MEMINFO = "MemTotal: 100 kB\nMemAvailable: 2048 kB\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (257 << 20, "257 MiB"),
        (5 << 28, "1.2 GiB"),
        (1 << 41, "2.0 TiB"),
    ],
)
def test_format(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_container_limit_wins_when_it_is_lower(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    assert available_host_bytes(tmp_path, tmp_path) == 400000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert available_host_bytes(tmp_path, tmp_path) == 450000


def test_no_limit_and_no_files(tmp_path: Path) -> None:
    assert available_host_bytes(tmp_path, tmp_path) is None
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.max").write_text("max\n")
    assert available_host_bytes(tmp_path, tmp_path) == 2048 * 1024
