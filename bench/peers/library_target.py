"""A library without a server, as a target: it runs in a process of its own, which gets requests through a pipe.

Owns our side of that pipe; `loops/protocol.py` has the other side and the format. Closed loops only: a library takes
calls, not arrivals.
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
from bench.api import CompletionRequest
from bench.arrivals import Arrivals, ClosedLoop
from bench.errors import BenchError
from bench.load import LoadResult, RequestTiming
from bench.peers.peer import ROOT, Environment, ServedModels, Unavailable, all_cores


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

    def run(self, requests: Sequence[CompletionRequest], arrivals: Arrivals, seed: int) -> LoadResult:
        """Raises BenchError where the library fails, or answers with another number of tokens."""
        if not isinstance(arrivals, ClosedLoop):
            raise BenchError(f"{self.name} is a library: it can be measured in a closed loop only.")
        asks = [
            {"model": request.model, "prompt": request.prompt, "output_tokens": request.output_tokens}
            for request in requests
        ]
        stdin = _stream(self.process.stdin)
        stdin.write(orjson.dumps({"clients": arrivals.clients, "asks": asks}) + b"\n")
        stdin.flush()
        reply = self.reply()
        for request, arrived, ids in zip(requests, reply["arrivals_s"], reply["ids"], strict=True):
            if not len(arrived) == len(ids) == request.output_tokens:
                raise BenchError(f"{self.name} made {len(ids)} tokens where {request.output_tokens} were asked for.")
        return LoadResult(reply["wall_s"], tuple(map(_trace, reply["arrivals_s"], reply["ids"])))

    def reply(self) -> dict[str, Any]:
        line = _stream(self.process.stdout).readline()
        reply: dict[str, Any] = orjson.loads(line) if line else {"error": self.log.read_text(errors="replace")[-600:]}
        if "error" in reply:
            raise BenchError(f"{self.name}: {reply['error']}")
        return reply


def _trace(arrived: Sequence[float], ids: Sequence[int]) -> RequestTiming:
    gaps = tuple(after - before for before, after in pairwise(arrived))
    return RequestTiming(arrived[0], gaps, len(arrived), tuple(ids))


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "both ends are piped"
    return stream


@contextmanager
def library_target(
    name: str, module: str, environment: Environment, models: ServedModels, log: Path
) -> Iterator[PipeTarget]:
    """Run `module` in `environment` until the block ends. Raises Unavailable where it does not become ready."""
    log.parent.mkdir(parents=True, exist_ok=True)
    directories = [str(path.resolve()) for path in (models.base, *models.adapters)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(environment.python), "-m", module, *directories],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=os.environ | all_cores(),
        )
    with process:
        target = PipeTarget(name, models.names, process, log)
        try:
            try:
                target.reply()
            except BenchError as error:
                raise Unavailable(str(error)) from error
            yield target
        finally:
            launch.stop(process)
