"""What reading adapters does to the world: every file that it opens, module that it imports, process and socket.

Owns a process of its own, whose interpreter tells (PEP 578), so that nothing is replaced and no other test is watched.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.sandbox_json import request_to_json
from loader.shape import BaseShape

ROOT = Path(__file__).parents[2]
_SCRIPT = """
import json, os, sys
from pathlib import Path
from adapters.checkpoint import read_directory
from adapters.errors import InvalidAdapter
from adapters.sandbox_json import request_from_json

question, usual, *folders = json.load(sys.stdin)
_, _, shape = request_from_json(question)
sys.path.insert(0, os.getcwd())
read_directory(Path(usual), shape)  # whatever is imported late is there from now on
seen, refused = [], 0
quiet = ("object.", "sys.", "builtins.", "marshal.", "code.", "compile", "exec", "os.", "fcntl.", "ctypes.", "array.")

def hook(event, args):
    descriptor = args and isinstance(args[0], int)  # of what is open already
    if listening and not descriptor and not event.startswith(quiet):
        seen.append([event, str(args[0]) if args else ""])

listening = False
sys.addaudithook(hook)
for folder in folders:
    path, listening = Path(folder), True
    try:
        read_directory(path, shape)
    except InvalidAdapter:
        refused += 1
    listening = False
json.dump({"seen": seen, "refused": refused}, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Audit:
    """How many directories were `refused`, and what was seen meanwhile: the event's name and its first argument."""

    refused: int
    seen: frozenset[tuple[str, str]]


def audit_of_reading(shape: BaseShape, usual: Path, folders: Sequence[Path], at: Path) -> Audit:
    """Read `folders` as a process that works in `at` and may import from there. `usual` is fine, and read before."""
    asked = [request_to_json(b"", usual, shape).decode(), str(usual), *map(str, folders)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", _SCRIPT],
        input=json.dumps(asked).encode(),
        capture_output=True,
        cwd=at,
        env={"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        check=True,
    )
    report = json.loads(done.stdout)
    return Audit(report["refused"], frozenset((event, first) for event, first in report["seen"]))
