"""OpenVINO GenAI, in process: its continuous batching pipeline, over a base that optimum converts.

Owns its installation and the conversion.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Target
from bench.peers.peer import Environment, Grafts
from bench.peers.pipe import looping

PACKAGES = ("openvino-genai", "optimum-intel", "torch")
BROKEN = "torchvision"
"""It may come as a CUDA build, which fails to import beside torch for CPUs; text does without."""


@dataclass(frozen=True, slots=True)
class OpenVino:
    name: str = "openvino"

    def install(self, directory: Path) -> None:
        environment = Environment(directory)
        if not environment.has("openvino_genai", "optimum"):
            environment.pip("install", *PACKAGES, log=directory / "install.log")
            environment.pip("uninstall", "-y", BROKEN, log=directory / "install.log")

    @contextmanager
    def start(self, directory: Path, grafts: Grafts) -> Iterator[Target]:
        environment, converted = Environment(directory), directory / "ir" / grafts.base.name
        if not (converted / "openvino_model.xml").exists():
            export = [str(directory / "bin" / "optimum-cli"), "export", "openvino", "--model", str(grafts.base)]
            options = ["--task", "text-generation-with-past", "--weight-format", "fp16", str(converted)]
            environment.check([*export, *options], directory / "convert.log")
        served = Grafts(converted, grafts.adapters, grafts.rank)
        log = directory / "serve.log"
        with looping(self.name, "bench.peers.loops.openvino_loop", environment, served, log) as target:
            yield target
