"""A peer: another project's server or library, in an environment of its own, measured by the same client.

Owns the protocol, the environment, and the error by which a peer says that it cannot be measured here.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.measure import Target

ROOT = Path(__file__).parents[2]


class Unavailable(Exception):
    """This peer cannot be measured here; the text says why."""


@dataclass(frozen=True, slots=True)
class ServedModels:
    """What every peer serves: the directories of the base and of the adapters. A directory's name is its adapter's."""

    base: Path
    adapters: tuple[Path, ...]
    rank: int

    @property
    def names(self) -> frozenset[str]:
        return frozenset(path.name for path in self.adapters)


def all_cores() -> dict[str, str]:
    """Environment variables that let a peer use all cores, whatever number of threads was set for this process."""
    return {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}


def content_key(directory: Path) -> str:
    """A short name with a digest of the model or adapter in `directory`, under which its conversions are kept."""
    digest = hashlib.sha256()
    for file in sorted([*directory.glob("*config.json"), *directory.glob("*.safetensors")]):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"{directory.name}-{digest.hexdigest()[:12]}"


def partial_path(target: Path) -> Path:
    """Where `target` is written until it is complete, so that half of it is never taken for the whole."""
    return target.with_name(f"{target.name}.partial")


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment in `directory`, or, where there is none, the one that runs us."""

    directory: Path | None

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python" if self.directory else Path(sys.executable)

    def has(self, *modules: str) -> bool:
        if self.directory is None:
            return all(importlib.util.find_spec(module) for module in modules)
        find = "import sys, importlib.util as u; sys.exit(not all(u.find_spec(name) for name in sys.argv[1:]))"
        return self.python.exists() and not subprocess.run([self.python, "-c", find, *modules]).returncode

    def version(self, package: str) -> str:
        """Empty where it is not installed."""
        tell = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
        ended = subprocess.run([self.python, "-c", tell, package], capture_output=True, text=True)
        return "" if ended.returncode else ended.stdout.strip()

    def pip(self, *arguments: str, log: Path, settings: Mapping[str, str] | None = None) -> None:
        """`settings` are added to its environment. Raises Unavailable with the end of pip's output."""
        assert self.directory is not None, "packages of peers do not belong into our own environment"
        if not self.has("pip"):
            venv.create(self.directory, with_pip=True)
        self.check([self.python, "-m", "pip", *arguments], log, settings)

    def check(
        self,
        command: Sequence[str | Path],
        log: Path,
        settings: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        """Run `command` in `directory`, its output into `log`. Raises Unavailable with the end of it when it fails."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            ended = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | dict(settings or {}), cwd=directory
            )
        if ended.returncode:
            tail = log.read_text(errors="replace")[-600:]
            raise Unavailable(f"{Path(command[0]).name} ended with {ended.returncode}; the end of {log}:\n{tail}")


class Peer(Protocol):
    """Each method raises Unavailable where the peer cannot be had, or does not run, on this machine."""

    @property
    def name(self) -> str: ...

    def install(self, directory: Path) -> None:
        """Bring it into `directory`, unless it is there. May take long."""
        ...

    def version(self, directory: Path) -> str:
        """Which package is in `directory`, and its version."""
        ...

    def start(self, directory: Path, models: ServedModels) -> AbstractContextManager[Target]:
        """Serve `models` until the block ends. The target names the adapters that it really has."""
        ...
