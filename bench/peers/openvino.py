"""OpenVINO GenAI, in process: its continuous batching pipeline, over a base that optimum converts.

Owns its installation and the conversion.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Target
from bench.peers.peer import Environment, Grafts, aside, contents
from bench.peers.pipe import looping

PACKAGE = "openvino-genai"
PACKAGES = (PACKAGE, "optimum-intel", "torch")
BROKEN = "torchvision"
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
        if environment.has(BROKEN):
            environment.pip("uninstall", "-y", BROKEN, log=log)

    def version(self, directory: Path) -> str:
        return f"{PACKAGE} {Environment(directory).version(PACKAGE)}"

    @contextmanager
    def start(self, directory: Path, grafts: Grafts) -> Iterator[Target]:
        environment, converted = Environment(directory), directory / "ir" / contents(grafts.base)
        if not converted.exists():
            _convert(environment, directory, grafts.base, converted)
        served = Grafts(converted, grafts.adapters if self.adapters else (), grafts.rank)
        log = directory / f"{self.name}.log"
        with looping(self.name, "bench.peers.loops.openvino_loop", environment, served, log) as target:
            yield target


def _convert(environment: Environment, directory: Path, base: Path, target: Path) -> None:
    shutil.rmtree(aside(target), ignore_errors=True)
    export = [str(directory / "bin" / "optimum-cli"), "export", "openvino", "--model", str(base)]
    options = ["--task", "text-generation-with-past", "--weight-format", "fp16", str(aside(target))]
    environment.check([*export, *options], directory / "convert.log")
    aside(target).rename(target)
