"""metrics.jsonl: the figures of every optimizer step and evaluation of a run, one JSON object a line.

Owns the file's name, and what becomes of it when a run is interrupted. Imports no torch.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.atomic import write_atomically

NAME = "metrics.jsonl"


class MetricsFile:
    """The metrics.jsonl of `folder`. Each record is on disk as soon as it is appended."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def append(self, record: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, and a last line that a kill cut off."""
        kept = [record for record in self.records() if record["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def records(self) -> Iterator[dict[str, float]]:
        """The whole lines of the file; none where there is no file."""
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)
