"""PEFT and transformers' continuous batching: libraries that our own environment may hold already.

Owns what they need to be installed; their loops are in `loops/`.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.peers.library_target import PipeTarget, library_target
from bench.peers.peer import Environment, ServedModels


@dataclass(frozen=True, slots=True)
class Library:
    """`modules` are looked for here first; where one is missing, `packages` go into an environment apart."""

    name: str
    loop: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]

    def environment(self, directory: Path) -> Environment:
        here = Environment(None)
        return here if here.has(*self.modules) else Environment(directory)

    def install(self, directory: Path) -> None:
        environment = self.environment(directory)
        if not environment.has(*self.modules):
            environment.pip("install", *self.packages, log=directory / "install.log")

    def version(self, directory: Path) -> str:
        return f"{self.name} {self.environment(directory).version(self.name)}"

    def start(self, directory: Path, models: ServedModels) -> AbstractContextManager[PipeTarget]:
        environment = self.environment(directory)
        return library_target(self.name, f"bench.peers.loops.{self.loop}", environment, models, directory / "serve.log")


PEFT = Library("peft", "peft_loop", ("torch", "transformers", "peft"), ("torch", "transformers", "peft"))
TRANSFORMERS = Library(
    "transformers", "transformers_loop", ("torch", "transformers", "peft"), ("torch", "transformers", "peft")
)
