"""How commands end badly: one message for a person, one exit code for a script; 2, typed wrongly, is typer's own.

CommandFailed  1  the server refused, a file is wrong
Unreachable    3  no server answers
"""


class CommandFailed(Exception):
    exit_code = 1


class Refused(CommandFailed):
    """A refusal: its status and its code; a proxy in front of the server gives none."""

    def __init__(self, message: str, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a little later."""
        too_fast = self.status == 429 and self.code is None
        return too_fast or self.status in (408, 502, 503, 504) or self.code in ("upload_busy", "queue_full")


class Unreachable(CommandFailed):
    exit_code = 3
