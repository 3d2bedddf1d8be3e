"""Forms are tried in a process of their own before this one compiles them: the library can take minutes over a few
kilobytes, or overflow its stack, which no limit of its own prevents.

Owns that process's life. It is started for the first form and again after each that ended it, and inherits neither the
server's environment nor its files.
"""

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_ROOT = Path(__file__).parents[2]

PATIENCE_S = 30.0
"""The child's own limit is of processor time; this one is for a machine that gives it none."""


class Unreadable(ValueError):
    """What is wrong with a form, in the library's words or ours, and in which of its schemas, if that is known."""

    def __init__(self, fault: str, place: int | None = None) -> None:
        super().__init__(fault)
        self.place = place


class Trial:
    """Used by one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = _nothing

    def __call__(self, kind: str, content: str | list[str]) -> str:
        """The form as the library's grammar. Raises Unreadable."""
        reply = self._asked(json.dumps([kind, content]).encode() + b"\n")
        if not reply:
            raise Unreadable("reading it takes too much time or memory")
        grammar, fault, place = json.loads(reply)
        if fault:
            raise Unreadable(fault, place)
        return str(grammar)

    def _asked(self, question: bytes) -> bytes:
        """The child's line; b"" where it has ended over this question."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()
        try:
            process.stdin.write(question)
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        finally:
            watchdog.cancel()
        if not reply:
            self._end()
        return reply

    def _start(self) -> None:
        self._end()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "server.grammars.trial_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": str(_ROOT)},
            start_new_session=True,  # a Ctrl-C is the server's
        )
        self._end = weakref.finalize(self, _end, self._process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with suppress(BrokenPipeError):
        process.communicate()


def _nothing() -> None:
    """What ends a child that was never started."""
