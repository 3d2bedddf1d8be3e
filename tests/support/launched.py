"""One process of a launch, which trains one config after another and tells what it wrote and what it was told.

Run as `python -m tests.support.launched REPORTS CONFIG...`. A launcher's wish for FSDP is kept from those configs whose
folder is named `whole`.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from training.config_file import read_config
from training.launcher import FSDP
from training.observer import SilentObserver
from training.run import train

CHANGES = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "shutil.rmtree": 0}
"""Audit events that change a folder, and which argument names the path."""


class Noting(SilentObserver):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Changes:
    """What this process changed on the disk. An audit hook cannot be taken away, so there is one."""

    def __init__(self) -> None:
        self._found: list[str] = []
        sys.addaudithook(self._hear)

    @contextmanager
    def below(self, folder: Path) -> Iterator[list[str]]:
        self._found = []
        found: list[str] = []
        yield found
        found += [change for change in self._found if str(folder) in change]

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            written = bool(int(str(flags)) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if mode is None else mode != "r"
        elif event in CHANGES:
            path, written = arguments[CHANGES[event]], True
        else:
            return
        if written:
            self._found.append(f"{event} {path}")


def main(reports: Path, *configs: Path) -> None:
    torch.set_num_threads(1)
    asked, changes = os.environ.get(FSDP, "false"), Changes()
    for config in configs:
        os.environ[FSDP] = "false" if config.parent.name == "whole" else asked
        told, observer = read_config(config), Noting()
        with changes.below(told.output.parent) as changed:
            train(told, data_dir=reports, resume=None, observer=observer, serve=None)
        report = reports / f"{config.parent.name}-{os.environ['RANK']}.json"
        report.write_text(json.dumps({"changed": changed, "notes": observer.notes}), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
