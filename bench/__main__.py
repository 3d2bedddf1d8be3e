"""`python -m bench`, which is `rootstock bench`: how every measurement begins and ends.

Owns the way every error ends: a message that says the fix, and an exit code.
"""

import signal
import sys


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers that were started stop too
    try:
        _measure()
    except KeyboardInterrupt:  # before the command line has been read; later it is typer's to end
        sys.exit(128 + signal.SIGINT)


def _measure() -> None:
    import typer  # these take a second, in which a person may think better of it

    from bench.errors import words

    try:
        from bench.commands import app

        app(prog_name="rootstock bench")
    except Exception as error:
        if (told := words(error)) is None:
            raise
        typer.secho(told, err=True, fg="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
