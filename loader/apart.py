"""A function in a process of its own, which takes all its memory with it when it ends.

Owns the process and how its end is told. Knows nothing of what is computed there.
"""

import signal
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection


class EndedEarly(Exception):
    """The process ended before the function did. `exit_code` is negative where a signal ended it, as in subprocess."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code

    @property
    def killed(self) -> bool:
        """Whether it was SIGKILL, which is what the kernel sends for lack of memory."""
        return self.exit_code == -signal.SIGKILL

    def __str__(self) -> str:
        if self.exit_code < 0:
            return f"was ended by {signal.Signals(-self.exit_code).name}"
        return f"ended early, with exit code {self.exit_code}"


def run_apart(work: Callable[..., None], *arguments: object) -> None:
    """Run `work(*arguments)` in a new process. `work` is a function of a module; it and the arguments are pickled.

    Raises what `work` raises, and EndedEarly. The new process imports the program's main file before anything else, so
    it ends early where that is standard input, or is not guarded by `if __name__ == "__main__":`.
    """
    context = get_context("spawn")
    outcome, told = context.Pipe(duplex=False)
    child = context.Process(target=_tell, args=(told, work, arguments), daemon=True)
    child.start()
    told.close()  # so that the child's end is the end of the pipe
    try:
        raised: Exception | None = outcome.recv()
    except EOFError:
        child.join()
        assert child.exitcode is not None, "it was joined"
        raise EndedEarly(child.exitcode) from None
    except BaseException:  # Ctrl-C: nobody waits for it any longer
        child.kill()
        raise
    finally:
        outcome.close()
    child.join()
    if raised is not None:
        raise raised


def _tell(told: "Connection[Exception | None, None]", work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    try:
        work(*arguments)
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # a traceback is not pickled
        told.send(error)
    else:
        told.send(None)
