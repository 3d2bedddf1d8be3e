"""How commands end badly: one message for a person, one exit code for a script.

CommandFailed  1  the server refused, a file is wrong
Usage          2  the command was typed wrongly
Unreachable    3  no server answers
"""


class CommandFailed(Exception):
    exit_code = 1


class Usage(CommandFailed):
    exit_code = 2


class Unreachable(CommandFailed):
    exit_code = 3
