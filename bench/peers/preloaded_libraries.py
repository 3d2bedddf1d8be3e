"""The two libraries that vLLM wants loaded before everything else: an allocator and Intel's OpenMP.

Owns where they are found. Without them vLLM runs, but slower, and would be measured below its best.
"""

import subprocess
from pathlib import Path

from bench.peers.peer import Environment, Unavailable

DEBIAN_PACKAGE = "libtcmalloc-minimal4"
TCMALLOC = "libtcmalloc_minimal.so.4"
INTEL_OPENMP = "libiomp5.so"
SYSTEM = (Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib"))


def libraries(directory: Path, system: tuple[Path, ...] = SYSTEM) -> list[Path]:
    """Both, in the order in which they are loaded. Raises Unavailable where one is missing."""
    openmp = directory.resolve() / "lib" / INTEL_OPENMP
    if not openmp.exists():
        raise Unavailable(f"{openmp} is missing, which its packages bring on x86 processors; it would be slow without.")
    allocator = _tcmalloc((directory.resolve() / "debian", *system))
    if allocator is None:
        raise Unavailable(f"{TCMALLOC} is missing: install {DEBIAN_PACKAGE}; it would be slow without.")
    return [allocator, openmp]


def unpack_tcmalloc(directory: Path, log: Path) -> None:
    """Unpack Debian's package under `directory`, unless the system has the library. Raises Unavailable."""
    unpacked = directory.resolve() / "debian"
    if _tcmalloc((unpacked, *SYSTEM)):
        return
    unpacked.mkdir(parents=True, exist_ok=True)
    here = Environment(None)
    try:
        here.check(["apt-get", "download", DEBIAN_PACKAGE], log, directory=unpacked)
        here.check(["dpkg", "-x", str(next(unpacked.glob("*.deb"))), str(unpacked)], log)
    except (FileNotFoundError, StopIteration, subprocess.SubprocessError) as error:
        raise Unavailable(f"{TCMALLOC} is missing, and Debian's tools are too: {error}") from error


def _tcmalloc(places: tuple[Path, ...]) -> Path | None:
    found = (path for place in places for depth in ("", "*/", "usr/lib/*/") for path in place.glob(depth + TCMALLOC))
    return next(found, None)
