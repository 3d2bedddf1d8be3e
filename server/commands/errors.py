"""How commands end badly: one message for a person, one exit code for a script; 2, typed wrongly, is typer's own.

CommandFailed  1  the server refused, a file is wrong
Unreachable    3  no server answers
"""


class CommandFailed(Exception):
    exit_code = 1


class Unreachable(CommandFailed):
    exit_code = 3
