"""The `rootstock` command.

Owns the list of commands and the way every error ends: a message that says the fix, and an exit code.
Imports nothing heavy; each command imports what it needs.
"""

import errno
import sys

import typer

from server.commands import adapters, bench, chat, doctor, keys, merge, plan, train, usage, validate
from server.commands.flags import with_settings_flags
from server.version import version

_app = typer.Typer(
    name="rootstock",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Serve many LoRA adapters from one resident base model.",
)
_app.add_typer(adapters.app, name="adapters")
_app.add_typer(keys.app, name="keys")
_app.command()(validate.validate)
_app.command()(merge.merge)
_app.command()(chat.chat)
_app.command()(train.train)
_app.command()(plan.plan)
_app.command()(doctor.doctor)
_app.command(context_settings=bench.ANYTHING)(bench.bench)
_app.command()(usage.usage)


@_app.command("version")
def show_version() -> None:
    """Print the version."""
    typer.echo(version())


def _serve(flags: dict[str, object]) -> None:
    """Load the base and serve it. Every flag is also ROOTSTOCK_<NAME>, and a key of rootstock.toml."""
    from server.serve import serve
    from server.settings import read_settings

    raise typer.Exit(serve(read_settings(flags)))


_app.command("serve")(with_settings_flags(_serve))


def main() -> None:
    """The entry point. Errors that a person can mend are told in words; all others are ours and keep a traceback."""
    try:
        _app()
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        typer.secho(_words(error), err=True, fg="red")
        sys.exit(code)


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'standard output'}: {error.strerror}."
    return str(error)


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error whose text is meant for the user."""
    from adapters.errors import AdapterError
    from loader.errors import LoaderError
    from server.commands.errors import CommandFailed
    from server.datadir import DataDirUnusable
    from server.keys.errors import KeysError
    from server.listen import AddressInUse
    from server.settings import SettingsError
    from training.errors import ConfigInvalid, TrainingError

    if isinstance(error, CommandFailed):
        return error.exit_code
    if isinstance(error, SettingsError | ConfigInvalid):
        return 2
    if isinstance(error, AdapterError | LoaderError | TrainingError | DataDirUnusable | AddressInUse | KeysError):
        return 1
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        return 1  # a path that was typed leads nowhere, may not be written to, or its disk is full
    return None
