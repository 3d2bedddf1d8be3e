"""The library is compiled once, under a name that says for what, and its absence is told in a sentence."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from native import build
from native.build import Arithmetic, sources
from native.errors import NoTiles, Unavailable
from native.kernels import Kernels, load
from tests.support.kernels import CACHE, kernels


def test_the_library_alone_stays_and_a_second_build_finds_it(tmp_path: Path) -> None:
    kernels()  # skips where there is no compiler
    first = build.build(tmp_path)
    compiled_at = first.stat().st_mtime_ns
    assert build.build(tmp_path) == first
    assert list(tmp_path.iterdir()) == [first]
    assert first.stat().st_mtime_ns == compiled_at


def test_the_sources_are_there() -> None:
    assert [path.stem for path in sources()] == [
        "attention",
        "layer",
        "low_rank",
        "packing",
        "pointwise",
        "product",
        "threads",
        "tiles",
    ]


AVX512 = b"#define __AVX512F__ 1\n#define __AVX512BF16__ 1\n#define __AVX512VBMI__ 1\n"
AMX = b"#define __AMX_TILE__ 1\n#define __AMX_BF16__ 1\n"


@pytest.mark.parametrize(
    ("vendor", "macros", "arithmetic"),
    [
        ("AuthenticAMD", AVX512, Arithmetic.DOTS),
        ("AuthenticAMD", b"#define __AVX512F__ 1\n#define __AVX512BF16__ 1\n", Arithmetic.FLOATS),
        ("GenuineIntel", AVX512, Arithmetic.FLOATS),
        ("GenuineIntel", AVX512 + AMX, Arithmetic.TILES),
        ("GenuineIntel", AMX, Arithmetic.FLOATS),
    ],
)
def test_numbers_are_multiplied_in_the_form_that_is_fastest(
    vendor: str, macros: bytes, arithmetic: Arithmetic, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert build.fastest(macros, cpuinfo) is arithmetic


def test_a_processor_that_does_not_say_whose_it_is_is_not_trusted_with_dot_products(tmp_path: Path) -> None:
    assert build.fastest(AVX512, tmp_path / "no such file") is Arithmetic.FLOATS


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


def test_of_two_that_need_it_at_once_one_compiles_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tmp_path / "made"
    slow = tmp_path / "g++"
    slow.write_text(
        "#!/bin/sh\n"
        'case "$*" in *-dM*) exit;; esac\n'
        "sleep 0.1\n"
        'while [ "$1" != -o ]; do shift; done\n'
        f'echo "$2" >> {made}\n'
        ': > "$2"\n'
    )
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build.build(tmp_path / "cache"), range(2))
    assert first == second
    assert len(made.read_text().splitlines()) == len(sources()) + 1


def test_a_library_that_does_not_load_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "kernels.so").write_bytes(b"not a library")
    with pytest.raises(Unavailable, match="do not load"):
        Kernels(tmp_path / "kernels.so")


@pytest.fixture
def refusing(tmp_path: Path) -> Path:
    """A cache where what was compiled for tiles says that the operating system does not give them."""
    kernels(Arithmetic.TILES)  # skips where it cannot be compiled
    kernels(Arithmetic.FLOATS)
    source, library = tmp_path / "refusing.c", tmp_path / build.build(CACHE, Arithmetic.TILES).name
    source.write_text("int tiles_usable(void) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    shutil.copy(build.build(CACHE, Arithmetic.FLOATS), tmp_path)
    return tmp_path


def test_tiles_that_the_system_does_not_give_are_told(refusing: Path) -> None:
    with pytest.raises(NoTiles, match="does not let this process"):
        load(refusing, Arithmetic.TILES)


def test_without_tiles_that_the_processor_has_numbers_are_multiplied_as_floats(refusing: Path) -> None:
    if build.build(CACHE) != build.build(CACHE, Arithmetic.TILES):
        pytest.skip("this processor has no tiles")
    there = set(refusing.iterdir())
    load(refusing)
    assert set(refusing.iterdir()) == there  # what was taken is the one that was there
