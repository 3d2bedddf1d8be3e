"""`rootstock doctor`: what is wrong with a data directory, and a lost registry made again.

Owns that command and its words. The examination is adapters/recovery.py's; a running server is left alone.
"""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.errors import CommandFailed
from server.commands.options import DataDirOption, data_folder

if TYPE_CHECKING:
    from adapters.recovery import Diagnosis, Rebuilt


def doctor(
    data_dir: DataDirOption = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make a damaged or lost registry again from what stands beside the blobs.")
    ] = False,
) -> None:
    """Examine a data directory that no server uses: the registry, every adapter's digest, and what was left behind.

    The exit code is 0 when nothing is wrong, 1 otherwise.
    """
    from adapters import recovery
    from adapters.store import BlobStore
    from server.datadir import DataDir

    data = DataDir(data_folder(data_dir))
    if not any(path.exists() for path in (data.registry, data.blobs, data.keys)):
        raise CommandFailed(f"No server has used {data.root}. Give the server's own --data-dir.")
    lock = data.lock()
    try:
        store = BlobStore(data.blobs)
        found = recovery.examine(data.registry, store)
        _say(found)
        if rebuild and found.unusable is None:
            typer.echo("The registry is usable, so it is not rebuilt.")
        elif rebuild:
            _say_rebuilt(recovery.rebuild(data.registry, store))
            raise typer.Exit(0)
        raise typer.Exit(0 if found.sound else 1)
    finally:
        os.close(lock)


def _say(found: "Diagnosis") -> None:
    if found.sound:
        typer.echo("Nothing is wrong.")
    if found.unusable is not None:
        typer.echo(f"registry: {found.unusable}")
    for version in found.missing:
        typer.echo(f"{version.name}@{version.number}: its bytes are gone. Upload it again, or delete it.")
    for id in found.corrupt:
        typer.echo(f"{id}: damaged. Upload the adapter again, under the same name; until then it is answered with 503.")
    for id in found.orphans:
        typer.echo(f"{id}: no name points at it. The next start removes it.")
    if found.leftovers:
        typer.echo(f"{found.leftovers} unfinished writes. The next start removes them.")


def _say_rebuilt(rebuilt: "Rebuilt") -> None:
    for name, number in rebuilt.versions:
        typer.echo(f"found again: {name}@{number}")
    for id in rebuilt.nameless:
        typer.echo(f"{id}: nothing says what it was called. Upload the adapter again.")
    for what in rebuilt.again:
        typer.echo(f"restored: {what}")
    for what in rebuilt.lost:
        typer.echo(f"not restored: {what}")
    if rebuilt.kept is not None:
        typer.echo(f"The old registry is kept as {rebuilt.kept}.")
