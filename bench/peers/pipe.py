"""A library that has no server, as a target: its loop runs in a process of its own, and is asked through a pipe.

Owns our side of that pipe; `loops/line.py` says what goes through it. Closed loops only: a library takes calls, not
arrivals.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import orjson

from bench import launch
from bench.api import Ask
from bench.arrivals import Arrivals, Closed
from bench.errors import BenchError
from bench.load import Run, Trace
from bench.peers.peer import ROOT, Environment, Grafts, Unavailable, cores


@dataclass(frozen=True, slots=True)
class PipeTarget:
    name: str
    adapters: frozenset[str]
    process: subprocess.Popen[bytes]
    log: Path
    base_id: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, requests: Sequence[Ask], arrivals: Arrivals, seed: int) -> Run:
        """Raises BenchError where the library fails, or answers with another number of tokens."""
        if not isinstance(arrivals, Closed):
            raise BenchError(f"{self.name} is a library: it can be measured in a closed loop only.")
        asks = [{"model": ask.model, "prompt": ask.prompt, "output_tokens": ask.output_tokens} for ask in requests]
        stdin = _stream(self.process.stdin)
        stdin.write(orjson.dumps({"clients": arrivals.clients, "asks": asks}) + b"\n")
        stdin.flush()
        reply = self.reply()
        for ask, arrived, ids in zip(requests, reply["arrivals_s"], reply["ids"], strict=True):
            if not len(arrived) == len(ids) == ask.output_tokens:
                raise BenchError(f"{self.name} made {len(ids)} tokens where {ask.output_tokens} were asked for.")
        return Run(reply["wall_s"], tuple(map(_trace, reply["arrivals_s"], reply["ids"])))

    def reply(self) -> dict[str, Any]:
        line = _stream(self.process.stdout).readline()
        reply: dict[str, Any] = orjson.loads(line) if line else {"error": self.log.read_text(errors="replace")[-600:]}
        if "error" in reply:
            raise BenchError(f"{self.name}: {reply['error']}")
        return reply


def _trace(arrived: Sequence[float], ids: Sequence[int]) -> Trace:
    gaps = tuple(after - before for before, after in pairwise(arrived))
    return Trace(arrived[0], gaps, len(arrived), tuple(ids))


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "both ends are piped"
    return stream


@contextmanager
def looping(name: str, module: str, environment: Environment, grafts: Grafts, log: Path) -> Iterator[PipeTarget]:
    """Run `module` in `environment` until the block ends. Raises Unavailable where it does not become ready."""
    log.parent.mkdir(parents=True, exist_ok=True)
    directories = [str(path.resolve()) for path in (grafts.base, *grafts.adapters)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(environment.python), "-m", module, *directories],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=os.environ | cores(),
        )
    with process:
        target = PipeTarget(name, grafts.names, process, log)
        try:
            try:
                target.reply()
            except BenchError as error:
                raise Unavailable(str(error)) from error
            yield target
        finally:
            launch.stop(process)
