"""The library is compiled once, under a name that says for what, and its absence is told in a sentence."""

from pathlib import Path

import pytest

from native import build
from native.build import sources
from native.errors import Unavailable
from native.kernels import Kernels
from tests.support.kernels import kernels


def test_the_library_alone_stays_and_a_second_build_finds_it(tmp_path: Path) -> None:
    kernels()  # skips where there is no compiler
    first = build.build(tmp_path)
    compiled_at = first.stat().st_mtime_ns
    assert build.build(tmp_path) == first
    assert list(tmp_path.iterdir()) == [first]
    assert first.stat().st_mtime_ns == compiled_at


def test_the_sources_are_there() -> None:
    assert [path.stem for path in sources()] == ["attention", "layer", "low_rank", "pointwise", "product", "threads"]


@pytest.mark.parametrize(("vendor", "fast"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_bf16_is_multiplied_as_it_is_where_that_is_fast(vendor: str, fast: bool, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert build.has_fast_dots(cpuinfo) is fast
    assert not build.has_fast_dots(tmp_path / "no such file")


def test_a_processor_without_the_instructions_is_not_asked_for_them() -> None:
    assert not build.can_dot(b"#define __AVX512F__ 1\n#define __AVX512BF16__ 1\n")
    assert build.can_dot(b"#define __AVX512BF16__ 1\n#define __AVX512VBMI__ 1\n")


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="install one, such as g\\+\\+"):
        build.build(tmp_path)


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho no such option >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(Unavailable, match="no such option"):
        build.build(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


def test_a_library_that_does_not_load_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "kernels.so").write_bytes(b"not a library")
    with pytest.raises(Unavailable, match="do not load"):
        Kernels(tmp_path / "kernels.so")
