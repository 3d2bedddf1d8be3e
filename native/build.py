"""Compiling the CPU kernels, once for each machine and version of them.

Owns the compiler's command and the cache. Knows neither torch nor what the kernels do.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from native.errors import Unavailable

SOURCES = Path(__file__).with_name("cpp")
COMPILERS = ("g++", "clang++", "c++")
# Not -ffast-math: NaN and infinity must come out as they went in.
OPTIONS = (
    *("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC"),
    "-ffp-contract=fast",  # tiles multiply and add in one, so vectors have to, for the same bits
)
QUIET = ("-Wno-psabi",)  # vectors are never passed between libraries
TIMEOUT_S = 300.0


class Arithmetic(StrEnum):
    """How numbers are multiplied: as floats, in dot products of bf16, or in tiles of bf16, which are AMX's."""

    FLOATS = "floats"
    DOTS = "dots"
    TILES = "tiles"


DEFINES = {Arithmetic.FLOATS: (), Arithmetic.DOTS: ("-DBF16_DOTS",), Arithmetic.TILES: ("-DBF16_DOTS", "-DBF16_TILES")}
DOTS = (b"__AVX512BF16__", b"__AVX512VBMI__")
NEEDED = {Arithmetic.FLOATS: (), Arithmetic.DOTS: DOTS, Arithmetic.TILES: (*DOTS, b"__AMX_TILE__", b"__AMX_BF16__")}
"""What a compiler defines for a processor that has the instructions."""


def build(cache: Path, arithmetic: Arithmetic | None = None) -> Path:
    """The shared library under `cache`, compiled now if it is not there. Appears by rename.

    Its name is a hash of the sources, the options, and the compiler's description of itself and this processor, so a
    cache may be shared. `arithmetic`: the fastest of this processor's if not given. Tiles can be had on every processor
    that has dot products: where it has no tiles, loops stand for them, slow but right.
    Raises Unavailable with the reason.
    """
    compiler = _compiler()
    macros = _macros(compiler)
    arithmetic = arithmetic or fastest(macros)
    if arithmetic is not Arithmetic.FLOATS and not has(Arithmetic.DOTS, macros):
        raise Unavailable("this processor does not multiply bf16")
    options = [*OPTIONS, *DEFINES[arithmetic]]
    library = cache / f"kernels-{_key(options, macros)}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache):
            if not library.exists():  # or another process has compiled it meanwhile
                _compile([compiler, *options], library)
    return library


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits for other processes that do this for the same folder, where its file system lets it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def has(arithmetic: Arithmetic, macros: bytes) -> bool:
    """Whether a processor, which a compiler's macros describe, has the instructions."""
    return all(name in macros for name in NEEDED[arithmetic])


def fastest(macros: bytes, cpuinfo: Path = Path("/proc/cpuinfo")) -> Arithmetic:
    """Tiles where there are such. Else dot products of bf16 where one begins every cycle, as on AMD's.

    On Intel's it is every second one: there, two fp32 multiplications in each cycle do the same work in half the time,
    and without rounding.
    """
    if has(Arithmetic.TILES, macros):
        return Arithmetic.TILES
    try:
        quick = "AuthenticAMD" in cpuinfo.read_text()
    except OSError:
        quick = False
    return Arithmetic.DOTS if quick and has(Arithmetic.DOTS, macros) else Arithmetic.FLOATS


def _compiler() -> str:
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise Unavailable(f"no C++ compiler was found ({', '.join(COMPILERS)}); install one, such as g++")
    return compiler


def _macros(compiler: str) -> bytes:
    return _run([compiler, *OPTIONS, "-dM", "-E", "-x", "c++", os.devnull])


def sources() -> list[Path]:
    return sorted(SOURCES.glob("*.cpp"))


def _key(options: Sequence[str], macros: bytes) -> str:
    """The predefined macros name the compiler's version and every instruction set that `-march=native` turned on."""
    digest = sha256(" ".join(options).encode() + macros)
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(command: Sequence[str], library: Path) -> None:
    """Compile with OpenMP but link without: its symbols are torch's, and so is its pool of threads."""
    partial = library.with_name(f".{library.stem}-{os.getpid()}")
    objects = [partial.with_name(f"{partial.name}-{path.stem}.o") for path in sources()]
    try:
        commands = [
            [*command, *QUIET, "-c", str(path), "-o", str(compiled)]
            for path, compiled in zip(sources(), objects, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(_run, commands))
        _run([command[0], "-shared", *map(str, objects), "-o", str(partial)])
        partial.replace(library)
    finally:
        for path in (partial, *objects):
            path.unlink(missing_ok=True)


def _run(command: Sequence[str]) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the compiler could not be run: {error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unavailable(f"{command[0]} failed: {lines[0] if lines else f'exit status {done.returncode}'}")
    return done.stdout
