"""A library's side of the pipe: a request is a line of JSON on standard input, its timings a line on standard output.

Owns that protocol. Runs in a peer's environment, so it imports nothing but the standard library.

In: {"clients": 8, "asks": [{"model": "a0" or "", "prompt": [ids], "output_tokens": 64}]}, out: {"wall_s": seconds,
"arrivals_s": [[seconds of each token]], "ids": [[each token]]} or {"error": text}. Every `clients` asks go together;
the first line out is {"ready": true}.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """`model` is an adapter's name, or empty for the base."""

    model: str
    prompt: list[int]
    output_tokens: int


@dataclass(frozen=True)
class Answer:
    """When each token came, by `time.perf_counter`, and which it was."""

    came: list[float]
    ids: list[int]


class Engine(Protocol):
    """`mixes`: one call may hold requests for different models."""

    mixes: bool

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all of `requests` together."""
        ...


def answer(engine: Engine, requests: Sequence[Request], clients: int) -> dict[str, object]:
    """Answer `requests`, `clients` at a time; times are seconds since the request was sent.

    An engine that cannot mix models in a call answers one model after the other.
    """
    started = time.perf_counter()
    arrivals: list[list[float]] = [[] for _ in requests]
    ids: list[list[int]] = [[] for _ in requests]
    for first in range(0, len(requests), clients):
        asked = time.perf_counter()
        together = range(first, min(first + clients, len(requests)))
        for call in calls([requests[index].model for index in together], engine.mixes):
            answered = engine.generate([requests[first + place] for place in call])
            for place, own in zip(call, answered, strict=True):
                arrivals[first + place] = [token - asked for token in own.came]
                ids[first + place] = own.ids
    return {"wall_s": time.perf_counter() - started, "arrivals_s": arrivals, "ids": ids}


def calls(models: Sequence[str], mixes: bool) -> list[list[int]]:
    """The places in `models` that go into one call, call by call."""
    if mixes:
        return [list(range(len(models)))]
    return [[place for place, model in enumerate(models) if model == own] for own in dict.fromkeys(models)]


def serve(engine: Engine, out: int) -> None:
    """Answer lines until standard input ends; `out` is the descriptor that `claim_output` gave."""
    with os.fdopen(out, "w") as stream:
        print(json.dumps({"ready": True}), file=stream, flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            try:
                reply = answer(engine, [Request(**request) for request in command["asks"]], command["clients"])
            except Exception as error:  # whatever the library raises is its answer
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=stream, flush=True)


def claim_output() -> int:
    """Standard output for the protocol alone: what libraries print goes to standard error from here on."""
    kept = os.dup(1)
    os.dup2(2, 1)
    return kept
