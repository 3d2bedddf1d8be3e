"""One process of a run under `accelerate launch`, which tells the files it opened for writing.

Run as `python -m tests.support.launched CONFIG REPORTS`.
"""

import json
import os
import sys
from pathlib import Path

import torch

from training.reading import read_config
from training.run import train
from training.watch import Silent

CHANGES = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "shutil.rmtree": 0}
"""Audit events that change a folder, and which argument names the path."""


def main(config: Path, reports: Path) -> None:
    told = read_config(config)
    changed: list[str] = []

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            written = bool(int(str(flags)) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if mode is None else mode != "r"
        elif event in CHANGES:
            path, written = arguments[CHANGES[event]], True
        else:
            return
        if written and str(told.output.parent) in str(path):
            changed.append(f"{event} {path}")

    sys.addaudithook(hear)
    torch.set_num_threads(1)
    train(told, data_dir=reports, resume=None, watch=Silent(), serve=None)
    (reports / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(changed), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
