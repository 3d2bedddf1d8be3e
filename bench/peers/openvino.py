"""OpenVINO GenAI, in process: its continuous batching pipeline, over a base that optimum converts.

Owns its installation and the conversion.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Target
from bench.peers.library_target import library_target
from bench.peers.peer import Environment, ServedModels, content_key, partial_path

PACKAGE = "openvino-genai"
PACKAGES = (PACKAGE, "optimum-intel", "torch")
UNWANTED = "torchvision"
"""It may come as a CUDA build, which fails to import beside torch for CPUs; text does without."""


@dataclass(frozen=True, slots=True)
class OpenVino:
    """`adapters` off measures its base alone: a pipeline that knows of adapters is slower even without one."""

    name: str
    adapters: bool

    def install(self, directory: Path) -> None:
        environment, log = Environment(directory), directory / "install.log"
        if not environment.has("openvino_genai", "optimum", "openvino_tokenizers", "torch"):
            environment.pip("install", *PACKAGES, log=log)
        if environment.has(UNWANTED):
            environment.pip("uninstall", "-y", UNWANTED, log=log)

    def version(self, directory: Path) -> str:
        return f"{PACKAGE} {Environment(directory).version(PACKAGE)}"

    @contextmanager
    def start(self, directory: Path, models: ServedModels) -> Iterator[Target]:
        environment, converted = Environment(directory), directory / "ir" / content_key(models.base)
        if not converted.exists():
            _convert(environment, directory, models.base, converted)
        served = ServedModels(converted, models.adapters if self.adapters else (), models.rank)
        log = directory / f"{self.name}.log"
        with library_target(self.name, "bench.peers.loops.openvino_loop", environment, served, log) as target:
            yield target


def _convert(environment: Environment, directory: Path, base: Path, target: Path) -> None:
    shutil.rmtree(partial_path(target), ignore_errors=True)
    export = [str(directory / "bin" / "optimum-cli"), "export", "openvino", "--model", str(base)]
    options = ["--task", "text-generation-with-past", "--weight-format", "fp16", str(partial_path(target))]
    environment.check([*export, *options], directory / "convert.log")
    partial_path(target).rename(target)
