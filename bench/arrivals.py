"""When requests arrive, and how long they are.

closed     a number of clients, each of which sends its next request when the last is answered
poisson    a mean number of requests per second, whether or not earlier ones are answered
trace      the times and lengths in a file of JSON lines: {"at": seconds, "prompt_tokens": 120, "output_tokens": 40}

Owns these three and the spans of lengths. Knows no server.
"""

import random
import re
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import orjson


@dataclass(frozen=True, slots=True)
class Span:
    """A number of tokens, drawn evenly from `low` to `high`, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    @classmethod
    def parse(cls, text: str) -> "Span":
        """`128`, or `64-256`. Raises ValueError for anything else."""
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        span = cls(int(ends[1]), int(ends[2] or ends[1])) if ends else cls(0, 0)
        if not 1 <= span.low <= span.high:
            raise ValueError("Write a number of tokens from 1 on, as 128, or two from low to high, as 64-256.")
        return span

    def draw(self, generator: random.Random) -> int:
        return generator.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`clients` that each send their next request when the last is answered."""

    clients: int

    def __str__(self) -> str:
        return f"c{self.clients}"


@dataclass(frozen=True, slots=True)
class Poisson:
    """Gaps between arrivals are exponential with mean `1 / rate_per_s`."""

    rate_per_s: float

    def __str__(self) -> str:
        return f"{self.rate_per_s:g}/s"

    def due_s(self, count: int, seed: int) -> list[float]:
        generator = random.Random(seed)
        return list(accumulate(generator.expovariate(self.rate_per_s) for _ in range(count)))


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One request of a trace: when it comes, in seconds after the first, and its lengths in tokens."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Replay:
    """The requests of a trace file, sent at the times that it gives."""

    name: str
    lines: tuple[TraceLine, ...]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def read(cls, file: Path) -> "Replay":
        """Read a trace. Raises ValueError, with the line's number, for a line in another format than above."""
        lines = []
        for number, text in enumerate(file.read_bytes().splitlines(), start=1):
            try:
                line = orjson.loads(text)
                lines.append(TraceLine(float(line["at"]), int(line["prompt_tokens"]), int(line["output_tokens"])))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file}, line {number}: {error}") from error
        if not lines:
            raise ValueError(f"{file} has no lines.")
        first = min(each.at_s for each in lines)
        return cls(file.stem, tuple(replace(each, at_s=each.at_s - first) for each in lines))


Arrivals = ClosedLoop | Poisson | Replay
