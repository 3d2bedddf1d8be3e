"""Training runs that kill themselves with SIGKILL in the middle of things, each in a process of its own.

Run as `python -m tests.support.killed STEP CONFIG...`. All imports are paid once; each config runs in a fork, which is
safe because nothing was computed before.
"""

import os
import signal
import sys
from pathlib import Path

from training.config_file import read_config
from training.observer import SilentObserver, Step
from training.run import train
from training.trainers import sft

assert sft.train is not None, "imported before the forks"


class Deadly(SilentObserver):
    """Ends the process at a step as the kernel would when memory is out: no handler runs, no buffer is flushed."""

    def __init__(self, at: int) -> None:
        self._at = at

    def step(self, step: Step) -> None:
        if step.step == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def main(at: int, configs: list[Path]) -> None:
    for path in configs:
        child = os.fork()
        if child == 0:
            train(read_config(path), data_dir=path.parent / "data", resume=None, observer=Deadly(at), serve=None)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


if __name__ == "__main__":
    main(int(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
