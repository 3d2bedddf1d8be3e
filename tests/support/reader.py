"""An upload read as the server reads it, in a process that tells what reading it took.

Owns that process. Its times and its memory are its own: neither a busy machine nor the test's process counts.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from adapters.sandbox import SandboxedReader
from adapters.sandbox_json import request_to_json
from loader.shape import BaseShape

ROOT = Path(__file__).parents[2]
_SCRIPT = """
import atexit, sys, time
from pathlib import Path
from adapters import sandbox_child

def tell():
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(time.process_time(), peak.split()[1], file=sys.stderr)

atexit.register(tell)
sandbox_child.main(int(sys.argv[1]), int(sys.argv[2]))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of processor time and the most memory at one time, in bytes, of a process that read one upload."""

    cpu_s: float
    peak: int
    verdict: bytes


def cost_of_reading(config: bytes, weights: Path, shape: BaseShape) -> Cost:
    """Under the limits that the server has unless it is told others."""
    limits = SandboxedReader()
    done = subprocess.run(
        [sys.executable, "-P", "-S", "-c", _SCRIPT, str(limits.memory), str(int(limits.seconds))],
        input=request_to_json(config, weights, shape),
        capture_output=True,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
    )
    cpu_s, kibibytes = done.stderr.split()
    return Cost(float(cpu_s), int(kibibytes) << 10, done.stdout)
