"""What a peer is: someone else's server or library, in an environment of its own, measured by the same client.

Owns the contract, the environment, and the way in which a peer says that it cannot be measured here.
"""

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
class Grafts:
    """What everybody serves: the directory of the base, and those of the adapters, each of which is its name."""

    base: Path
    adapters: tuple[Path, ...]
    rank: int

    @property
    def names(self) -> frozenset[str]:
        return frozenset(path.name for path in self.adapters)


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

    def pip(self, *arguments: str, log: Path, settings: Mapping[str, str] | None = None) -> None:
        """`settings` are added to its environment. Raises Unavailable with the end of what pip said."""
        assert self.directory is not None, "packages of peers do not belong into our own environment"
        if not self.python.exists():
            venv.create(self.directory, with_pip=True)
        self.check([self.python, "-m", "pip", *arguments], log, settings)

    def check(self, command: Sequence[str | Path], log: Path, settings: Mapping[str, str] | None = None) -> None:
        """Run `command`, its output into `log`. Raises Unavailable with the end of it when it fails."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            ended = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | dict(settings or {})
            )
        if ended.returncode:
            told = log.read_text(errors="replace")[-600:]
            raise Unavailable(f"{Path(command[0]).name} ended with {ended.returncode}; the end of {log}:\n{told}")


class Peer(Protocol):
    """Each method raises Unavailable where the peer cannot be had, or does not run, on this machine."""

    @property
    def name(self) -> str: ...

    def install(self, directory: Path) -> None:
        """Bring it into `directory`, unless it is there. May take long."""
        ...

    def start(self, directory: Path, grafts: Grafts) -> AbstractContextManager[Target]:
        """Serve `grafts` until the block ends. The target names the adapters that it really has."""
        ...
