"""Reads each upload in a process of its own, so that a hostile file can neither hang the server nor bloat it.

Owns the child's life and the words for a child that met a limit. The child is started for one upload; what it needs
to know comes to its standard input, and it inherits neither the server's environment nor its files.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from adapters.checkpoint import Checkpoint
from adapters.errors import Fault, InvalidAdapter
from adapters.sandbox_child import OUT_OF_MEMORY
from adapters.sandbox_json import request_to_json, result_from_json
from loader.shape import BaseShape

_ROOT = Path(__file__).parents[1]
_MIB = 1 << 20
_FIX = "Upload a smaller adapter, or ask the server's operator for a higher limit"


class ReaderBroken(Exception):
    """The child ended in a way that no upload explains: our bug, or a broken installation."""


@dataclass(frozen=True, slots=True)
class SandboxedReader:
    """A `checkpoint.Reader`: at most `memory` bytes of address space and `seconds` of time for each upload.

    Each call raises what `checkpoint.read` raises, and InvalidAdapter that names the limit when one was met.
    """

    memory: int = 512 * _MIB
    seconds: float = 120.0

    def __call__(self, config: bytes, weights: Path, shape: BaseShape) -> Checkpoint:
        try:
            limits = (str(self.memory), str(int(self.seconds) + 1))
            ended = subprocess.run(
                # -S: it needs nothing that pip installed, and looking for that takes longer than reading
                [sys.executable, "-P", "-S", "-m", "adapters.sandbox_child", *limits],
                input=request_to_json(config, weights.absolute(), shape),
                capture_output=True,
                timeout=self.seconds,
                env={"PYTHONPATH": str(_ROOT)},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._limit(f"reading it took longer than the limit of {self.seconds:g} seconds") from None
        if ended.returncode == 0:
            return result_from_json(ended.stdout, weights)
        if ended.returncode == OUT_OF_MEMORY:
            raise self._limit(f"reading it took more than the limit of {self.memory // _MIB} MiB of memory")
        if ended.returncode < 0:
            raise self._limit(f"its reader was ended by the system, which limits it (signal {-ended.returncode})")
        raise ReaderBroken(ended.stderr.decode(errors="replace"))

    def _limit(self, problem: str) -> InvalidAdapter:
        return InvalidAdapter([Fault("adapter", f"{problem}", _FIX)])
